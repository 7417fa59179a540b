"""Epochs of minibatch Adam: how PPO, REINFORCE, RGPO and most neighbours climb their objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rgpo.core.rollout import Moved
from rgpo.errors import NonFiniteError, require, require_compile
from rgpo.learning.types import STATISTICS, AdamSettings

if TYPE_CHECKING:
    from rgpo.learning.algorithm import Policy


@dataclass(kw_only=True)
class SGD:
    """Adam over shuffled minibatches, every sample once an epoch; the defaults are those of the published PPO."""

    num_epochs: int = 10
    num_minibatches: int = 32
    lr: float = 3e-4
    anneal_lr: bool = True  # linearly to 0 over the run
    adam_eps: float = 1e-5
    max_grad_norm: float | None = 0.5  # of actor and critic together; null leaves gradients whole
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    value_clip: float | None = 0.2  # null leaves the value loss unclipped
    compile: bool | str = "auto"

    trust_region: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        for key in ("num_epochs", "num_minibatches"):
            value = getattr(self, key)
            require(isinstance(value, int) and value > 0, f"update.{key}", value, "must be a positive whole number.")
        for key in ("lr", "adam_eps"):
            require(0 < getattr(self, key) < math.inf, f"update.{key}", getattr(self, key), "must be positive.")
        for key in ("max_grad_norm", "value_clip"):
            value = getattr(self, key)
            require(value is None or value > 0, f"update.{key}", value, "must be positive, or null to leave it out.")
        for key in ("vf_coef", "ent_coef"):
            require(getattr(self, key) >= 0, f"update.{key}", getattr(self, key), "must not be negative.")
        require_compile(self.compile)

    def check(self, batch_size: int, normalize: str) -> None:
        """Refuse minibatches that do not divide the batch."""
        size, rest = divmod(batch_size, self.num_minibatches)
        near = [n for n in range(1, batch_size + 1) if batch_size % n == 0]
        advice = min(near, key=lambda n: abs(n - self.num_minibatches))
        require(
            rest == 0,
            "update.num_minibatches",
            self.num_minibatches,
            f"does not divide the batch of {batch_size}, for example {advice} does.",
        )
        require(
            size > 1 or normalize != "minibatch",
            "update.num_minibatches",
            self.num_minibatches,
            f"leaves {size} sample a minibatch, too few to normalise advantages over; choose fewer minibatches.",
        )

    def setup(
        self, policy: Policy, objective: Any, penalised: bool, num_iterations: int, seed: int, normalize: str = "minibatch"
    ) -> None:
        """Make the optimiser for policy; objective is the surrogate without its kl_coef."""
        self.num_iterations = num_iterations
        self.num_updates = 0
        self.optimiser = policy.adam(
            AdamSettings(
                objective=objective,
                penalised=penalised,
                normalize=normalize == "minibatch",
                num_minibatches=self.num_minibatches,
                num_steps=num_iterations * self.num_epochs * self.num_minibatches,
                max_grad_norm=self.max_grad_norm,
                adam_eps=self.adam_eps,
                vf_coef=self.vf_coef,
                ent_coef=self.ent_coef,
                value_clip=self.value_clip,
                compile=self.compile,
                seed=seed,
            )
        )

    @property
    def note(self) -> str:
        """How compile was resolved."""
        return self.optimiser.note

    def __call__(self, policy: Policy, batch: Any, kl_coef: float) -> tuple[dict[str, float], Moved]:
        """Climb for num_epochs; metrics and what each epoch left. NonFiniteError on NaN."""
        import torch

        lr = self.lr * (1 - self.num_updates / self.num_iterations) if self.anneal_lr else self.lr
        statistics, after = self.optimiser.climb(batch, lr, kl_coef, self.num_epochs)
        self.num_updates += 1
        table = statistics.flatten(0, 1).double()
        finite = torch.isfinite(table).all(1)
        if not finite.all():
            raise NonFiniteError(
                f"loss or gradient became NaN or infinite by gradient step {int((~finite).nonzero()[0]) + 1} of {len(table)}; "
                f"lower update.lr={self.lr} or set update.max_grad_norm."
            )
        mean = dict(zip(STATISTICS, table.mean(0).tolist(), strict=True))
        highest = dict(zip(STATISTICS, table.amax(0).tolist(), strict=True))
        metrics = {
            "loss/policy": mean["loss/policy"],
            "loss/value": mean["loss/value"],
            "ratio/abs_log_max_learning": highest["ratio/abs_log_max"],
            "grad/norm_mean": mean["grad/norm"],
            "grad/norm_max": highest["grad/norm"],
            "grad/clip_fraction": mean["grad/clipped"],
        }
        return metrics, Moved(*after)

    def state_dict(self) -> dict[str, Any]:
        return {"optimiser": self.optimiser.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.num_updates = state["num_updates"]
