"""TRPO's step: conjugate gradient on the Fisher matrix, a line search inside the trust region, and a critic fitted by Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rgpo.core.rollout import Moved
from rgpo.errors import NonFiniteError, require, require_compile
from rgpo.learning.types import CriticSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.algorithm import Policy


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

    def __post_init__(self) -> None:
        for key in ("kl_max", "cg_damping", "critic_lr"):
            require(getattr(self, key) > 0, f"update.{key}", getattr(self, key), "must be positive.")
        for key in ("cg_iterations", "line_search_tries", "critic_epochs", "critic_minibatches"):
            value = getattr(self, key)
            require(isinstance(value, int) and value > 0, f"update.{key}", value, "must be a positive whole number.")
        require_compile(self.compile)
        shrink = self.line_search_shrink
        require(0 < shrink < 1, "update.line_search_shrink", shrink, "must lie strictly between 0 and 1.")

    def check(self, batch_size: int, normalize: str) -> None:
        """Refuse critic minibatches that do not divide the batch."""
        require(
            batch_size % self.critic_minibatches == 0,
            "update.critic_minibatches",
            self.critic_minibatches,
            f"does not divide the batch of {batch_size}.",
        )

    def setup(
        self, policy: Policy, objective: Any, penalised: bool, num_iterations: int, seed: int, normalize: str = "batch"
    ) -> None:
        """Make the critic's optimiser for policy; objective is the surrogate without its kl_coef."""
        self.objective = objective
        self.normalize = normalize != "none"
        num_steps = num_iterations * self.critic_epochs * self.critic_minibatches
        self.critic = policy.critic_adam(
            CriticSettings(num_minibatches=self.critic_minibatches, num_steps=num_steps, compile=self.compile, seed=seed)
        )

    @property
    def note(self) -> str:
        """How compile was resolved."""
        return self.critic.note

    def __call__(self, policy: Policy, batch: Any, kl_coef: float) -> tuple[dict[str, float], Moved]:
        """One natural-gradient step of the actor, then critic_epochs passes of the critic. NonFiniteError on NaN."""
        import torch

        metrics = self._actor_step(policy, batch)
        after = Moved.stack([policy.moved(batch)])
        statistics, _ = self.critic.climb(batch, self.critic_lr, 0.0, self.critic_epochs)
        losses = statistics[..., 1]
        if not torch.isfinite(losses).all():
            raise NonFiniteError("value loss became NaN or infinite; lower update.critic_lr or look at the rewards.")
        return metrics | {"loss/value": losses.mean().item()}, after

    def _actor_step(self, policy: Policy, batch: Any) -> dict[str, float]:
        import torch

        from rgpo.learning.loss import standardise

        advantage = standardise(batch.advantage) if self.normalize else batch.advantage
        local = policy.local_model(batch, advantage, self.objective)
        gradient = local.gradient()
        if not torch.isfinite(gradient).all():
            raise NonFiniteError("policy gradient became NaN or infinite; look at the task's rewards and observations.")

        def damped(v: Tensor) -> Tensor:
            return local.fisher_product(v) + self.cg_damping * v

        direction, residual = conjugate_gradient(damped, gradient, self.cg_iterations)
        quadratic = direction.dot(damped(direction)).item()
        full_step = (2 * self.kl_max / quadratic) ** 0.5 * direction if quadratic > 0 else direction * 0

        def evaluate(fraction: float) -> tuple[float, float]:
            loss, kl = local.evaluate(fraction * full_step)
            return local.loss - loss, kl

        fraction = line_search(evaluate, self.kl_max, self.line_search_shrink, self.line_search_tries)
        local.move(fraction * full_step)
        return {
            "loss/policy": local.loss,
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
        self.critic.load_state_dict(state["critic"])
