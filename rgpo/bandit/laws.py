"""Laws of the log ratio d = log r under the old policy mu, with E r = 1.

    Gaussian   x ~ N(0, 1), pi = N(mean, std^2):  d = log N(x; mean, std^2) - log N(x; 0, 1), tail index std^2/(std^2 - 1)
    Pareto     r = x_m U^(-1/a), x_m = (a - 1)/a:  d = log x_m - log(U)/a, tail index a

E r^2 is finite only for a tail index above 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from rgpo.bandit.quadrature import Function, integrate_to_infinity
from rgpo.core.ranges import FINITE, POSITIVE, accept, check_fields
from rgpo.core.rollout import Array
from rgpo.errors import require

FARTHEST = 290.0  # nats; where the quadrature hands over to an exponential tail


class Law(Protocol):
    """A distribution of log ratios (nats) whose expectations are known."""

    def draw(self, num_samples: int, rng: np.random.Generator) -> Array:
        """Log ratios (n,) of samples of the old policy."""
        ...

    def kl(self) -> float:
        """KL(old || new) = E[-d], nats."""
        ...

    def expectation(self, function: Function) -> float:
        """E f(d) by quadrature, for f (n,) -> (n,); inf where it diverges."""
        ...


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Old policy N(0, 1), new policy N(mean, std^2); E r^2 is finite for std^2 < 2 only.

    Second moments of unbounded weights are exact to 1e-6 up to std^2 = 1.9; closer to 2 their tail is extrapolated.
    """

    mean: float = field(metadata=FINITE)
    std: float = field(metadata=POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self, "law")
        near = abs(self.log_ratio(np.zeros(1))[0]) < FARTHEST
        require(
            near, "law.mean", self.mean, f"is over {FARTHEST:g} nats of log ratio away for std={self.std}; lower it or raise std."
        )

    def draw(self, num_samples: int, rng: np.random.Generator) -> Array:
        return self.log_ratio(rng.standard_normal(num_samples))

    def log_ratio(self, x: Array) -> Array:
        """d = log N(x; mean, std^2) - log N(x; 0, 1)."""
        d: Array = -math.log(self.std) - (x - self.mean) ** 2 / (2 * self.std**2) + x**2 / 2
        return d

    def kl(self) -> float:
        return math.log(self.std) + (1 + self.mean**2) / (2 * self.std**2) - 0.5

    def expectation(self, function: Function) -> float:
        def side(sign: float) -> float:
            def integrand(x: Array) -> Array:
                density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
                out: Array = function(self.log_ratio(sign * x)) * density
                return out

            return integrate_to_infinity(integrand, 0.0, self._reach(sign))

        return side(1.0) + side(-1.0)

    def _reach(self, sign: float) -> float:
        """Largest |x| at which |d| is below FARTHEST and the normal density above e^-700."""
        x = np.linspace(0.0, 37.0, 3701)
        inside = np.abs(self.log_ratio(sign * x)) < FARTHEST
        return float(x[inside][-1])


@dataclass(frozen=True, kw_only=True)
class Pareto:
    """Ratios with a power-law tail, P(r > t) = (x_m/t)^a; E r^2 is finite for a > 2 only."""

    tail_index: float = field(
        metadata=accept(lambda a: 1 < a <= 1e6, "must be a finite number above 1, at most 1e6.")
    )  # E r is finite above 1

    def __post_init__(self) -> None:
        check_fields(self, "law")

    @property
    def log_smallest(self) -> float:
        """log x_m."""
        return math.log((self.tail_index - 1) / self.tail_index)

    def draw(self, num_samples: int, rng: np.random.Generator) -> Array:
        d: Array = self.log_smallest + rng.standard_exponential(num_samples) / self.tail_index
        return d

    def kl(self) -> float:
        return -self.log_smallest - 1 / self.tail_index

    def expectation(self, function: Function) -> float:
        a, low = self.tail_index, self.log_smallest

        def integrand(d: Array) -> Array:
            out: Array = function(d) * a * np.exp(-a * (d - low))
            return out

        return integrate_to_infinity(integrand, low, FARTHEST)
