"""A gate is a curve g over d = log r; its slope w = dg/dd, taken by autograd, is the weight of a sample.

Only tensor methods are used, so this module imports nothing heavy.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from rgpo.core.ranges import SMALLEST, check_fields, one_of
from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    import torch
    from torch import Tensor

D_MAX, D_MAX_DOUBLE = 40.0, 300.0  # nats; (e^d)^2 is finite up to D_MAX in float32 and bfloat16, to D_MAX_DOUBLE in float64


class GateBatch(NamedTuple):
    """All samples of a gradient step, (n,) each and detached, from which a gate computes its batch bounds."""

    log_ratio: Tensor  # nats, as the gate sees it
    advantage: Tensor
    logp_old: Tensor | None = None
    weight: Tensor | None = None  # in the loss; samples of weight 0 are ignored; None: equal weights

    def to(self, device: torch.device | str) -> GateBatch:
        """The same batch on another device."""
        logp_old, weight = (x if x is None else x.to(device) for x in (self.logp_old, self.weight))
        return GateBatch(self.log_ratio.to(device), self.advantage.to(device), logp_old, weight)


class Curve(Protocol):
    """A gate whose batch bounds, if it has any, are already computed."""

    def __call__(self, log_ratio: Tensor, advantage: Tensor, logp_old: Tensor | None = None) -> Tensor:
        """Gate value g for d = log_ratio (any shape, nats); logp_old = log pi_old of the same samples, read by some gates."""


class GateLike(Curve, Protocol):
    """The interface of a gate that the objective and the algorithm use."""

    @property
    def needs_logp_old(self) -> bool:
        """True if g depends on the old probability of a sample besides its ratio and advantage."""

    @property
    def needs_batch(self) -> bool:
        """True if g has bounds that are computed from all samples of a gradient step."""

    def prepare(self, batch: GateBatch) -> Curve:
        """The gate with its bounds computed from a batch; the gate itself if it needs no batch."""

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
    (``sharpness: float = field(metadata=POSITIVE)``) is checked at construction. A gate that reads more than d and the sign of
    A is an ``OldProbabilityGate`` or a ``BatchGate``.
    Raises: ConfigError if a parameter is out of range, or for `scale: unit` without a positive w(1).
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

    @property
    def needs_logp_old(self) -> bool:
        return False

    @property
    def needs_batch(self) -> bool:
        return False

    @abstractmethod
    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        """The gate value before scaling, at log ratio d."""

    def curve_at(self, d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        """The gate value before scaling, at log ratio d and old log-probability logp_old."""
        return self.curve(d, advantage)

    def prepare(self, batch: GateBatch) -> Curve:
        """The gate itself, which has no batch bounds."""
        return self

    def __call__(self, log_ratio: Tensor, advantage: Tensor, logp_old: Tensor | None = None) -> Tensor:
        return self._scaled(self.curve_at(log_ratio, advantage, logp_old))

    def _scaled(self, value: Tensor) -> Tensor:
        return value if self.scale == "none" else value / self._divisor

    def _slope_at_one(self) -> float:
        import torch

        d = torch.zeros((), dtype=torch.float64)
        return weight(self.curve_at, d, d + 1, d - math.log(2)).item()

    def weight_at_one(self) -> float:
        """w(1) after scaling, for A >= 0; at pi_old = 1/2 if the gate reads pi_old."""
        return self._slope_at_one() / self._divisor

    def observe(self, kl: float) -> None:
        """No-op: this gate has no state."""
        return None

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class OldProbabilityGate(Gate):
    """Base class of gates that also read logp_old = log pi_old of each sample; they define ``curve_from`` instead of ``curve``.

    For continuous actions pi_old is a density, which may exceed 1.
    """

    @property
    def needs_logp_old(self) -> bool:
        return True

    @abstractmethod
    def curve_from(self, d: Tensor, advantage: Tensor, logp_old: Tensor) -> Tensor:
        """The gate value before scaling, at log ratio d and old log-probability logp_old."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return self.curve_at(d, advantage, None)

    def curve_at(self, d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        """Raises: ConfigError if logp_old is None."""
        if logp_old is None:
            name = type(self).__name__
            raise ConfigError(f"gate={name}: reads each sample's old probability, which is not known here; choose another gate.")
        return self.curve_from(d, advantage, logp_old)


@dataclass(frozen=True, kw_only=True)
class BatchGate(Gate):
    """Base class of gates whose bounds are computed from all samples of a gradient step.

    Subclasses define ``bounds`` and ``curve_within``. Called without ``prepare``, a gate takes the given samples as the batch.
    """

    @property
    def needs_batch(self) -> bool:
        return True

    @abstractmethod
    def bounds(self, batch: GateBatch) -> tuple[Tensor, ...]:
        """The bounds of a batch: scalars without gradient."""

    @abstractmethod
    def curve_within(self, bounds: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        """The gate value before scaling, given the bounds of the batch."""

    def prepare(self, batch: GateBatch) -> Curve:
        return partial(self._prepared, self.bounds(batch))

    def _prepared(
        self, bounds: tuple[Tensor, ...], log_ratio: Tensor, advantage: Tensor, logp_old: Tensor | None = None
    ) -> Tensor:
        return self._scaled(self.curve_within(bounds, log_ratio, advantage, logp_old))

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return self.curve_at(d, advantage, None)

    def curve_at(self, d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        return self.curve_within(self.bounds(GateBatch(d.detach(), advantage, logp_old)), d, advantage, logp_old)


def weight(gate: Callable[..., Tensor], log_ratio: Tensor, advantage: Tensor, logp_old: Tensor | None = None) -> Tensor:
    """w = dg/dd of a gate by autograd, detached; same shape as log_ratio."""
    import torch

    with torch.enable_grad():
        d = log_ratio.detach().clone().requires_grad_()
        value = gate(d, advantage) if logp_old is None else gate(d, advantage, logp_old)
        (slope,) = torch.autograd.grad(value.sum(), d)
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


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), finite for every finite x."""
    return x.logaddexp(x * 0)
