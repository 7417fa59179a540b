"""A gate is a curve g over d = log r; its slope w = dg/dd, taken by autograd, is the weight of a sample.

Only tensor methods are used, so this module imports nothing heavy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from rgpo.core.ranges import SMALLEST, check_fields, one_of
from rgpo.errors import require

if TYPE_CHECKING:
    from torch import Tensor

D_MAX, D_MAX_DOUBLE = 40.0, 300.0  # nats; e^d squared is finite in float32 and bfloat16, and in float64


class GateLike(Protocol):
    """The interface of a gate that the objective and the algorithm use."""

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Gate value g for d = log_ratio (any shape, nats); only sign-aware gates read the sign of advantage."""

    def weight_at_one(self) -> float:
        """w(1) after scaling."""

    def observe(self, kl: float) -> None:
        """Adapt to the KL(old || new) of the last update (nats)."""

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Gate(ABC):
    """Base class of all gates: a frozen dataclass that defines ``curve``.

    `scale: none` leaves g as it is, `scale: unit` divides it by w(1). Parameters are fields; the range that a field declares
    (``sharpness: float = field(metadata=POSITIVE)``) is checked at construction.
    """

    scale: str = field(default="none", metadata=one_of("none", "unit"))

    # True if ``curve`` computes Python numbers from its sharpness (e.g. its math.log), which AdaptiveSharpness could not change
    constants_depend_on_sharpness: ClassVar[bool] = False

    _divisor = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "gate")
        if self.scale == "unit":
            slope = self._slope_at_one()
            lacks = f"{type(self).__name__} has no positive w(1) of at least {SMALLEST:g} to divide by"
            require(slope >= SMALLEST, "gate.scale", self.scale, f"{lacks}; use scale=none.")
            object.__setattr__(self, "_divisor", slope)

    @abstractmethod
    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        """The gate value before scaling, at log ratio d."""

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        value = self.curve(log_ratio, advantage)
        return value if self.scale == "none" else value / self._divisor

    def _slope_at_one(self) -> float:
        import torch

        return weight(self.curve, torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)).item()

    def weight_at_one(self) -> float:
        """w(1) after scaling, on the side A >= 0."""
        return self._slope_at_one() / self._divisor

    def observe(self, kl: float) -> None:
        """No-op: this gate has no state."""
        return None

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        return None


def weight(gate: Callable[[Tensor, Tensor], Tensor], log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """w = dg/dd, detached, from the curve by autograd; shapes as log_ratio."""
    import torch

    with torch.enable_grad():
        d = log_ratio.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(gate(d, advantage).sum(), d)
    return slope


def bounded(d: Tensor) -> Tensor:
    """d, clamped where e^d squared would overflow."""
    return d.clamp(max=D_MAX_DOUBLE if d.element_size() == 8 else D_MAX)


def ratio(d: Tensor) -> Tensor:
    """r = e^d, finite for every d."""
    return bounded(d).exp()


def ratio_minus_one(d: Tensor) -> Tensor:
    """r - 1, finite for every d and exact near d = 0."""
    return bounded(d).expm1()


def capped_ratio(d: Tensor, cap: float) -> Tensor:
    """r up to cap, then cap (1 + log(r/cap)): slope min(r, cap)."""
    log_cap = math.log(cap)
    return d.clamp(max=log_cap).exp() + cap * (d - log_cap).relu()
