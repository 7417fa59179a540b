"""TRPO's step: conjugate gradient on the Fisher matrix, a line search inside the trust region, and a critic fitted by Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rgpo.errors import ConfigError, NonFiniteError, require, require_compile

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.batch import Batch
    from rgpo.policies.actor_critic import ActorCritic


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, num_iterations: int, tolerance: float = 1e-10
) -> tuple[Tensor, float]:
    """x with H x = b for symmetric positive definite H given as product(v) = H v, from x = 0; and ||r||^2/||b||^2.

    b (P,). Hestenes & Stiefel 1952; stops once ||r||^2 < tolerance.
    """
    x, residual, direction = b * 0, b.clone(), b.clone()
    squared = start = residual.dot(residual)
    for _ in range(num_iterations):
        if squared < tolerance:
            break
        image = product(direction)
        step = squared / direction.dot(image)
        x = x + step * direction
        residual = residual - step * image
        previous, squared = squared, residual.dot(residual)
        direction = residual + (squared / previous) * direction
    return x, float(squared / start) if start > 0 else 0.0


def line_search(evaluate: Callable[[float], tuple[float, float]], kl_max: float, shrink: float, num_tries: int) -> float:
    """The first fraction 1, shrink, shrink^2, ... whose (improvement, KL) = evaluate(fraction) rises within kl_max, else 0."""
    for i in range(num_tries):
        fraction = shrink**i
        improvement, kl = evaluate(fraction)
        if kl <= kl_max and improvement > 0:
            return fraction
    return 0.0


@dataclass(kw_only=True)
class NaturalGradient:
    """theta += sqrt(2 kl_max / s'Hs) s, H s = g, shortened until KL <= kl_max and the surrogate rose (Schulman et al. 2015)."""

    kl_max: float = 0.01  # nats
    cg_iterations: int = 10
    cg_damping: float = 0.1
    line_search_shrink: float = 0.8
    line_search_tries: int = 10
    critic_epochs: int = 10
    critic_minibatches: int = 32
    critic_lr: float = 1e-3
    compile: bool | str = "auto"

    trust_region: bool = field(default=True, init=False)
    centres_advantage: bool = field(default=True, init=False)
    note: str = field(default="", init=False)

    def __post_init__(self) -> None:
        for key in ("kl_max", "cg_damping", "critic_lr"):
            require(getattr(self, key) > 0, f"update.{key}", getattr(self, key), "must be positive.")
        for key in ("cg_iterations", "line_search_tries", "critic_epochs", "critic_minibatches"):
            value = getattr(self, key)
            require(isinstance(value, int) and value > 0, f"update.{key}", value, "must be a positive whole number.")
        require_compile(self.compile)
        shrink = self.line_search_shrink
        require(0 < shrink < 1, "update.line_search_shrink", shrink, "must lie strictly between 0 and 1.")

    def check(self, batch_size: int) -> None:
        """Refuse critic minibatches that do not divide the batch."""
        require(
            batch_size % self.critic_minibatches == 0,
            "update.critic_minibatches",
            self.critic_minibatches,
            f"does not divide the batch of {batch_size} samples (num_envs x num_steps).",
        )

    def seen(self, advantage: Tensor) -> Tensor:
        """The advantages (N,) normalised over the batch."""
        from rgpo.updates.losses import standardise

        return standardise(advantage)

    def setup(self, policy: ActorCritic, objective: Any, penalised: bool, num_iterations: int, seed: int) -> None:
        """Make the critic's optimiser for policy; objective is the surrogate without its kl_coef."""
        from rgpo.updates.losses import critic_loss, policy_loss
        from rgpo.updates.minibatch_adam import MinibatchAdam, resolve_compile

        if not policy.has_distribution:
            raise ConfigError("update=natural_gradient: needs a policy with a distribution (its Fisher matrix), use sgd.")
        self.loss_function = partial(policy_loss, policy=policy, objective=objective, kl_coef=0.0, penalised=False)
        num_steps = num_iterations * self.critic_epochs * self.critic_minibatches
        compiled, self.note = resolve_compile(self.compile, num_steps)
        self.critic = MinibatchAdam(
            policy.parameters,
            partial(critic_loss, policy=policy),
            num_minibatches=self.critic_minibatches,
            max_grad_norm=None,
            adam_eps=1e-5,
            compiled=compiled,
            seed=seed,
        )

    def __call__(self, policy: ActorCritic, batch: Batch, kl_coef: float, after_epoch: Callable[[], None]) -> dict[str, float]:
        """One natural-gradient step of the actor, then critic_epochs passes of the critic. NonFiniteError on NaN."""
        import torch

        metrics = self._actor_step(policy, batch)
        after_epoch()
        self.critic.state = self.critic.state._replace(parameters=policy.parameters.clone())
        losses = torch.cat([self.critic.epoch(batch, self.critic_lr, 0.0) for _ in range(self.critic_epochs)])[:, 1]
        if not torch.isfinite(losses).all():
            raise NonFiniteError("value loss became NaN or infinite; lower update.critic_lr or look at the rewards.")
        policy.load(self.critic.state.parameters)
        return metrics | {"loss/value": losses.mean().item()}

    def _actor_step(self, policy: ActorCritic, batch: Batch) -> dict[str, float]:
        import torch

        advantage = self.seen(batch.advantage)
        count = policy.num_actor_parameters
        start = policy.parameters.clone()

        def surrogate_loss(flat: Tensor) -> tuple[Tensor, Tensor]:
            loss, (new, _) = self.loss_function(flat, batch, advantage)
            return loss, type(new)(*batch.old).kl(new).mean()

        flat = start.clone().requires_grad_()
        loss, kl = surrogate_loss(flat)
        gradient = -torch.autograd.grad(loss, flat, retain_graph=True)[0][:count]
        if not torch.isfinite(gradient).all():
            raise NonFiniteError("policy gradient became NaN or infinite; look at the task's rewards and observations.")
        slope = torch.autograd.grad(kl, flat, create_graph=True)[0][:count]

        def fisher_product(v: Tensor) -> Tensor:
            curved = torch.autograd.grad(slope.dot(v), flat, retain_graph=True)[0][:count]
            return curved + self.cg_damping * v

        direction, residual = conjugate_gradient(fisher_product, gradient, self.cg_iterations)
        quadratic = direction.dot(fisher_product(direction)).item()
        length = (2 * self.kl_max / quadratic) ** 0.5 if quadratic > 0 else 0.0
        before = loss.item()

        @torch.no_grad()
        def evaluate(fraction: float) -> tuple[float, float]:
            flat_new = start.clone()
            flat_new[:count] += fraction * length * direction
            loss_new, kl_new = surrogate_loss(flat_new)
            return before - loss_new.item(), kl_new.item()

        fraction = line_search(evaluate, self.kl_max, self.line_search_shrink, self.line_search_tries)
        policy.parameters[:count] += fraction * length * direction
        return {
            "loss/policy": before,
            "grad/norm_mean": gradient.norm().item(),
            "grad/norm_max": gradient.norm().item(),
            "trpo/line_search_success": float(fraction > 0),
            "trpo/step_fraction": fraction,
            "trpo/quadratic_form": quadratic,
            "trpo/cg_residual": residual,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.note += self.critic.load_state_dict(state["critic"])
