"""TRPO's step: conjugate gradient on the Fisher matrix, a line search inside the trust region, and a critic fitted by Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, cast

from rgpo.core.ranges import FRACTION, MANY, POSITIVE, check_fields, count, one_of
from rgpo.errors import require
from rgpo.learning.samples import PolicyShift, Samples
from rgpo.learning.types import Batch, Metrics, Policy, State, View

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.flat_adam import Data, FlatAdam
    from rgpo.learning.loss import GateLoss, LossParts

CRITIC_EPS = 1e-5  # of Adam, as in published PPO


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
    """The first fraction 1, shrink, shrink^2, ... for which evaluate returns improvement > 0 and KL <= kl_max; 0 if none does."""
    for i in range(num_tries):
        fraction = shrink**i
        improvement, kl = evaluate(fraction)
        if kl <= kl_max and improvement > 0:
            return fraction
    return 0.0


def critic_loss(
    flat: Tensor, data: Data, kl_coef: Tensor, *, value: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, LossParts]:
    """Mean value loss, unclipped, of data (features, value_target, value_old)."""
    from rgpo.learning.loss import LossParts, value_loss

    features, target, old = cast("tuple[Tensor, Tensor, Tensor]", data)
    loss = value_loss(value(flat, features), target, old, None).mean()
    return loss, LossParts(loss * 0, loss, *(loss * 0,) * 3)


@dataclass(kw_only=True)
class NaturalGradient:
    """theta += sqrt(2 kl_max / s'Hs) s, H s = g, shortened until KL <= kl_max and the surrogate rose (Schulman et al. 2015)."""

    kl_max: float = field(metadata=POSITIVE)  # nats
    cg_iterations: int = field(metadata=count(10_000))
    cg_damping: float = field(metadata=POSITIVE)
    line_search_shrink: float = field(metadata=FRACTION)
    line_search_tries: int = field(metadata=count(10_000))
    critic_epochs: int = field(metadata=count(10_000))
    critic_minibatches: int = field(metadata=count(MANY))
    critic_lr: float = field(metadata=POSITIVE)
    compile: bool | str = field(metadata=one_of("auto", True, False))

    trust_region: bool = field(default=True, init=False)
    num_minibatches: int = field(default=1, init=False)  # of the policy's step

    def __post_init__(self) -> None:
        check_fields(self, "update")

    def validate(self, batch_size: int, normalize: str) -> None:
        """Raises: ConfigError if critic_minibatches does not divide the batch."""
        require(
            batch_size % self.critic_minibatches == 0,
            "update.critic_minibatches",
            self.critic_minibatches,
            f"does not divide the batch of {batch_size}.",
        )

    def setup(self, policy: Policy, loss: GateLoss, normalize: str, num_iterations: int, seed: int) -> None:
        """Create the critic's optimizer; the policy's step needs none."""
        from rgpo.learning.flat_adam import FlatAdam

        self._objective = loss.objective
        self._standardize = normalize == "minibatch"  # the policy's step has one minibatch, the whole batch
        self._critic: FlatAdam | None = None
        if policy.critic is not None:
            self._critic = FlatAdam(
                policy.critic.flat,
                partial(critic_loss, value=policy.critic.value),
                num_minibatches=self.critic_minibatches,
                max_grad_norm=None,
                adam_eps=CRITIC_EPS,
                compile=False if policy.flat is None else self.compile,  # features of modules change shape
                num_steps=num_iterations * self.critic_epochs * self.critic_minibatches,
                seed=seed,
            )
        self._compiles = policy.flat is not None

    @property
    def note(self) -> str:
        """The engine's note on compilation."""
        return self._critic.note if self._critic is not None and self._compiles else "not compiled"

    @property
    def remedy(self) -> str:
        """A clause for the error that ends a run whose training diverges."""
        return f"lower update.kl_max={self.kl_max} or raise update.cg_damping={self.cg_damping}"

    def __call__(self, policy: Policy, batch: Batch, kl_coef: float) -> tuple[Metrics, PolicyShift]:
        """One natural-gradient step of the actor, then critic_epochs passes of the critic.

        Raises: NonFiniteStep if the gradient or the value loss is NaN or infinite.
        """
        metrics = self._actor_step(policy, batch)
        shift = PolicyShift.stack([policy.measure_shift(batch)])
        return metrics | {"loss/value": self._fit_critic(policy, batch)}, shift

    def _fit_critic(self, policy: Policy, batch: Batch) -> float:
        """Mean value loss over critic_epochs passes; 0 without a critic."""
        from rgpo.learning.culprits import NonFiniteStep

        if self._critic is None or policy.critic is None:
            return 0.0
        data = (policy.critic.features(batch), batch.samples.value_target, batch.samples.value_old)
        try:
            statistics, _ = self._critic.run_epochs(data, self.critic_lr, 0.0, self.critic_epochs)
        except NonFiniteStep as error:
            flat = None if policy.flat is None else error.flat
            where = f"{error.where} of the critic"
            raise NonFiniteStep(where, _parts(batch), flat, f"lower update.critic_lr={self.critic_lr}") from error
        return statistics[..., 1].mean().item()

    def _actor_step(self, policy: Policy, batch: Batch) -> Metrics:
        import torch

        from rgpo.learning.culprits import NonFiniteStep
        from rgpo.learning.gradients import TrustRegionProblem
        from rgpo.learning.loss import standardize

        if self._standardize:
            batch = batch.with_advantage(standardize(batch.samples.advantage))
        problem = TrustRegionProblem(policy, batch, self._objective)
        gradient = problem.gradient
        if not torch.isfinite(gradient).all():
            raise NonFiniteStep("the policy's step", _parts(batch), policy.flat)

        def damped(v: Tensor) -> Tensor:
            return problem.fisher_product(v) + self.cg_damping * v

        direction, residual = conjugate_gradient(damped, gradient, self.cg_iterations)
        quadratic = direction.dot(damped(direction)).item()
        full_step = (2 * self.kl_max / quadratic) ** 0.5 * direction if quadratic > 0 else direction * 0
        if not torch.isfinite(full_step).all():  # a Fisher product overflowed
            raise NonFiniteStep("the policy's step", _parts(batch), policy.flat)

        def evaluate(fraction: float) -> tuple[float, float]:
            loss, kl = problem.evaluate(fraction * full_step)
            return problem.loss - loss, kl

        fraction = line_search(evaluate, self.kl_max, self.line_search_shrink, self.line_search_tries)
        problem.move(fraction * full_step)
        return {
            "loss/policy": problem.loss,
            "grad/norm_mean": gradient.norm().item(),
            "grad/norm_max": gradient.norm().item(),
            "trpo/line_search_success": float(fraction > 0),
            "trpo/step_fraction": fraction,
            "trpo/quadratic_form": quadratic,
            "trpo/cg_residual": residual,
        }

    def state_dict(self) -> State:
        return {} if self._critic is None else {"critic": self._critic.state_dict()}

    def load_state_dict(self, state: State) -> None:
        if self._critic is not None:
            self._critic.load_state_dict(cast(State, state["critic"]))


def _parts(batch: Batch) -> list[tuple[View, Samples]]:
    """All forward passes of a batch and their samples."""
    from rgpo.learning.gradients import local_views

    return [(view, batch.at(view)) for view in local_views(batch)]
