"""What an update asks of a policy: an optimiser to climb with, or a local model of the objective to step on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS = ("loss/policy", "loss/value", "ratio/abs_log_max", "grad/norm", "grad/clipped")


@dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Minibatch Adam on the surrogate, the value loss and the entropy together."""

    objective: Any  # the surrogate without its kl_coef
    penalised: bool  # whether the loss has a KL term
    normalize: bool  # advantages over each minibatch
    num_minibatches: int
    num_steps: int  # gradient steps of the whole run
    max_grad_norm: float | None
    adam_eps: float
    vf_coef: float
    ent_coef: float
    value_clip: float | None
    compile: bool | str
    seed: int


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """Minibatch Adam on the value loss alone."""

    num_minibatches: int
    num_steps: int
    compile: bool | str
    seed: int


class Adam(Protocol):
    """Epochs of minibatch Adam with a generator of their own."""

    note: str  # how compile was resolved, and what a resumed run should know

    def climb(self, batch: Any, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, tuple[Any, ...]]:
        """num_epochs passes over batch, after which the policy has the last one's parameters.

        Returns (num_epochs, num_minibatches, 5) in the order of STATISTICS, and what each pass left: the fields of Moved
        with num_epochs in front, or nothing from what fits a critic.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class LocalModel(Protocol):
    """The mean surrogate loss and KL(old || new) around the parameters at which it was made."""

    loss: float

    def gradient(self) -> Tensor:
        """Of minus the loss by the policy's parameters, (P,)."""

    def fisher_product(self, v: Tensor) -> Tensor:
        """F v, F the Hessian of the mean KL; (P,) -> (P,)."""

    def evaluate(self, step: Tensor) -> tuple[float, float]:
        """Loss and mean KL after a step (P,), which is not kept."""

    def move(self, step: Tensor) -> None:
        """Take the step (P,)."""
