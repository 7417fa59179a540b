"""Gates that are the distribution function of a random acceptance threshold: accept a sample iff r exceeds the threshold.

With p the density of the threshold, g(r) = P(threshold < r) and w = dg/dd = r p(r): bounded iff r p(r) is, so a tail of p no
heavier than 1/r suffices. k = sharpness, c = center, u = k (r-c), v = k (d - log c):

    distribution    g                          w = r p(r)                          sup w is finite because p(r) falls as
    logistic        sigma(u)                   k r sigma(u) sigma(-u)              e^-kr
    normal          (1 + erf(u))/2             (k/sqrt pi) r e^-u^2                e^-(kr)^2
    cauchy          1/2 + arctan(u)/pi         (k/pi) r/(1 + u^2)                  r^-2
    double_lomax    (1 + u/(1 + |u|))/2        (k/2) r/(1 + |u|)^2                 r^-2
    hyperbolic      (1 + tanh(u))/2            (k/2) r sech2(u)                    e^-2kr (the logistic of 2 k)
    uniform         clip(u + 1/2, 0, 1)        k r 1[|u| < 1/2]                    bounded support: PPO for A >= 0
    loglogistic     sigma(v)                   k sigma(v) sigma(-v)                r^-(k+1)
    lognormal       Phi(v)                     k phi(v)                            e^-(k log r)^2/2 / r
    lomax           1 - (1 + r/c)^-k           (k r/c) (1 + r/c)^(-k-1)            r^-(k+1)
    gamma           P(k, k r/c)                (k r/c)^k e^(-k r/c)/Gamma(k)       r^(k-1) e^(-k r/c): VESPO

Each named gate below has a fixed distribution; ``Cdf`` takes the name of any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rgpo.core.gate import Gate, bounded, ratio_minus_one
from rgpo.core.ranges import ABOVE_ONE, POSITIVE, accept, one_of
from rgpo.errors import require

if TYPE_CHECKING:
    from torch import Tensor

Distribution = Callable[["Tensor", float, float], "Tensor"]  # F(r) of d, k and c


def above(d: Tensor, center: float) -> Tensor:
    """r - c, exact near d = 0 for c = 1."""
    return ratio_minus_one(d) - (center - 1)


def logistic(d: Tensor, k: float, center: float) -> Tensor:
    return (k * above(d, center)).sigmoid()


def normal(d: Tensor, k: float, center: float) -> Tensor:
    """Standard deviation 1/(k sqrt 2)."""
    return (k * above(d, center)).erf() / 2 + 0.5


def cauchy(d: Tensor, k: float, center: float) -> Tensor:
    return (k * above(d, center)).atan() / math.pi + 0.5


def double_lomax(d: Tensor, k: float, center: float) -> Tensor:
    z = k * above(d, center)
    return z / (1 + z.abs()) / 2 + 0.5


def hyperbolic(d: Tensor, k: float, center: float) -> Tensor:
    return (k * above(d, center)).tanh() / 2 + 0.5


def uniform(d: Tensor, k: float, center: float) -> Tensor:
    """On [c - 1/(2k), c + 1/(2k)]."""
    return (k * above(d, center) + 0.5).clamp(0, 1)


def loglogistic(d: Tensor, k: float, center: float) -> Tensor:
    return (k * (d - math.log(center))).sigmoid()


def lognormal(d: Tensor, k: float, center: float) -> Tensor:
    """The log of the threshold has standard deviation 1/k."""
    return ((k / math.sqrt(2)) * (d - math.log(center))).erf() / 2 + 0.5


def lomax(d: Tensor, k: float, center: float) -> Tensor:
    z = d - math.log(center)
    return -(-k * z.logaddexp(z * 0)).expm1()


def gamma(d: Tensor, k: float, center: float) -> Tensor:
    """Shape k and mean c; computed in double precision, which the log-density requires."""
    import torch

    x = bounded(d.double()).exp() * (k / center)
    value: Tensor = torch.special.gammainc(x.detach() * 0 + k, x.clamp(min=1e-300))
    return value.to(d.dtype)


DISTRIBUTIONS: dict[str, Distribution] = {
    f.__name__: f for f in (logistic, normal, cauchy, double_lomax, hyperbolic, uniform, loglogistic, lognormal, lomax, gamma)
}
LARGEST_SHAPE, LARGEST_STEEPNESS = 1e4, 1e20


@dataclass(frozen=True, kw_only=True)
class Cdf(Gate):
    """g = P(threshold < r) for a threshold drawn from one of DISTRIBUTIONS (our choice).

    Raises: ConfigError if sharpness or center is outside the range of the distribution.
    """

    distribution: str = field(metadata=one_of(*DISTRIBUTIONS))
    sharpness: float = field(metadata=POSITIVE)
    center: float = field(metadata=POSITIVE)

    def __post_init__(self) -> None:
        if self.distribution == "gamma":
            limits = (self.sharpness, 1e-3, LARGEST_SHAPE), (self.center, 1e-6, 1e6)
        else:
            limits = (self.sharpness, 0.0, LARGEST_STEEPNESS), (self.center, 0.0, LARGEST_STEEPNESS)
        for name, (value, low, high) in zip(("sharpness", "center"), limits, strict=True):
            inside = not isinstance(value, int | float) or low <= value <= high or not math.isfinite(value)
            require(inside, f"gate.{name}", value, f"must lie in [{low:g}, {high:g}] for distribution={self.distribution}.")
        super().__post_init__()

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return DISTRIBUTIONS[self.distribution](d, self.sharpness, self.center)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Gate):
    """g = sigma(k (r-1)): the paper's gate, read as a sigmoid in r (whether r or log r is meant is not known)."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return logistic(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class SigmoidLog(Gate):
    """g = sigma(k log r): the other reading of the paper's gate."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return loglogistic(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class SigmoidMatched(Gate):
    """g = sigma(k d - 2 artanh(1/k)), k > 1: a sigmoid in log r, shifted so that dw/dr(1) = w(1) as in IS (our choice)."""

    sharpness: float = field(metadata=ABOVE_ONE)

    constants_depend_on_sharpness: ClassVar[bool] = True

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        k = self.sharpness
        return (k * d - math.log((k + 1) / (k - 1))).sigmoid()


@dataclass(frozen=True, kw_only=True)
class GaussianLog(Gate):
    """g = Phi(k d): a Gaussian weight of width 1/k in log r (GIPO's shape)."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return lognormal(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class Erf(Gate):
    """g = (1 + erf(k (r-1)))/2 (the gate study, arXiv 2602.19345, mapped to [0, 1])."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return normal(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class Arctan(Gate):
    """g = 1/2 + arctan(k (r-1))/pi (the gate study, arXiv 2602.19345, mapped to [0, 1])."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return cauchy(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class Softsign(Gate):
    """g = (1 + z/(1 + |z|))/2, z = k (r-1) (the gate study, arXiv 2602.19345, mapped to [0, 1])."""

    sharpness: float = field(metadata=accept(lambda k: 0 < k <= 1e20, "must be positive and at most 1e20."))  # z is finite

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return double_lomax(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class Tanh(Gate):
    """g = (1 + tanh(k (r-1)))/2: the sigmoid of twice the sharpness."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return hyperbolic(d, self.sharpness, 1.0)


@dataclass(frozen=True, kw_only=True)
class Power(Gate):
    """g = 1 - (1 + r/c)^-k (our choice)."""

    sharpness: float = field(metadata=POSITIVE)
    center: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return lomax(d, self.sharpness, self.center)


@dataclass(frozen=True, kw_only=True)
class Rational(Gate):
    """g = r^k/(c^k + r^k), Hill's curve; c = 1 is the sigmoid in log r (our choice)."""

    sharpness: float = field(metadata=POSITIVE)
    center: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return loglogistic(d, self.sharpness, self.center)
