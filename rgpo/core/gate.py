"""What a gate is: a curve g over d = log r whose slope w = dg/dd is its weight, taken by autograd.

Only tensor methods are used, so this module imports nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor

D_MAX, D_MAX_DOUBLE = 40.0, 300.0  # nats; e^d squared is finite in float32 and bfloat16, and in float64


class Gate(Protocol):
    """What the objective and the algorithm ask of a gate."""

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Gate value g for d = log_ratio (any shape, nats); only sign-aware gates read the sign of advantage."""

    def weight_at_one(self) -> float:
        """w(1) after scaling."""

    def observe(self, kl: float) -> None:
        """Take note of the last update's KL(old || new) in nats."""

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What every gate shares: `scale: none` leaves g as it is, `scale: unit` divides it by w(1)."""

    scale: str = "none"

    def __post_init__(self) -> None:
        require(self.scale in ("none", "unit"), "gate.scale", self.scale, "choose none or unit.")
        for key in ("sharpness", "sharpness_neg", "center", "budget"):
            value = getattr(self, key, 1.0)
            require(0 < value < math.inf, f"gate.{key}", value, "must be a positive, finite number.")
        for key in ("eps_low", "eps_high"):
            value = getattr(self, key, 0.5)
            require(0 < value < 1, f"gate.{key}", value, "must lie strictly between 0 and 1.")
        cap = getattr(self, "cap", 2.0)
        uncapped = cap is None and self.may_be_uncapped
        require(uncapped or (cap is not None and 1 < cap < math.inf), "gate.cap", cap, "must be a finite number above 1.")
        object.__setattr__(self, "_divisor", self._slope_at_one() if self.scale == "unit" else 1.0)
        if self._divisor <= 0:
            raise ConfigError(f"gate.scale=unit: {type(self).__name__} has no positive w(1) to divide by, use scale=none.")

    _divisor = 1.0
    may_be_uncapped: ClassVar[bool] = False  # whether `cap: null` means no cap

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        """The gate value before scaling, at log ratio d."""
        raise NotImplementedError

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
        """A plain gate learns nothing."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        return None


class _CurveFunction(Protocol):
    def __call__(self, d: Tensor, advantage: Tensor, /) -> Tensor: ...


def weight(gate: _CurveFunction, log_ratio: Tensor, advantage: Tensor) -> Tensor:
    """w = dg/dd, detached, from the curve by autograd; shapes as log_ratio."""
    import torch

    with torch.enable_grad():
        d = log_ratio.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(gate(d, advantage).sum(), d)
    return slope


def bounded(d: Tensor) -> Tensor:
    return d.clamp(max=D_MAX_DOUBLE if d.element_size() == 8 else D_MAX)


def ratio(d: Tensor) -> Tensor:
    return bounded(d).exp()


def ratio_minus_one(d: Tensor) -> Tensor:
    return bounded(d).expm1()


def capped_ratio(d: Tensor, cap: float) -> Tensor:
    """r up to cap, then cap (1 + log(r/cap)): slope min(r, cap)."""
    log_cap = math.log(cap)
    return d.clamp(max=log_cap).exp() + cap * (d - log_cap).relu()
