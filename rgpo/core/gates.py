"""Acceptance gates: curves g over d = log r whose slope w = dg/dd = r g'(r) is the weight on A grad log pi.

    gate             g(d), r = e^d                                    w                               w(1)
    Log              d                                                1                               1
    Identity         r                                                r                               1
    Clip  A>=0       min(r, 1+eps_high)                               r 1[r < 1+eps_high]             1
          A<0        min(max(r, 1-eps_low), c)                        r 1[1-eps_low < r < c]          1
    SignAwareSigmoid A h, h = 1 + (2/k) tanh(k (r-1)/2) where the     r sech2(k (r-1)/2), else        1
                     step makes progress, else r, capped              min(r, c)
    Cispo            r up to c, then c (1 + log(r/c))                 min(r, c)                       1
    Sapo             (4/k) sigma(k (r-1)), k by the sign of A         r sech2(k (r-1)/2)              1
    Clamped          min(r, c), below f f (1 + log(r/f))              clamp(r, f, c)                  1
    Flipped          -1/r, below 1/c c (1 + log(c r))                 min(1/r, c)                     1
    Pspo             (1-a) r + a, clipped to [1-eps_low, 1+eps_high]  (1-a) r inside, on Clip's sides 1-a
    KLip  A>=0       1+eps_high - s softplus((1+eps_high-r)/s)        r sigma((1+eps_high-r)/s)
          A<0        1-eps_low + s softplus((r-1+eps_low)/s)          r sigma((r-1+eps_low)/s)
    Ano              G(r) for A>=0, -G(2-r) for A<0                   r G'(r), r G'(2-r)
    BySign           g_+ for A>=0, g_- for A<0                        of the gate on that side
    Spo              r - sign(A) (r-1)^2/(2 eps)                      r (1 - sign(A) (r-1)/eps)       1
    Budget           sigma(k (b - sign(A) d))/sigma(k b)              fades where d leaves its budget
    Open             1                                                0                               0

Distribution functions of an acceptance threshold are in rgpo.core.cdf, gates that read the old probability or the batch in
rgpo.core.old_probability and rgpo.core.batch_gates. The weights are not coded separately: ``rgpo.core.gate.weight`` obtains them
by autograd. Value and slope are finite for |d| <= 10,000 in float32 and bfloat16, because exponentials only ever take a
clamped d.

Parameters have no defaults here; conf/gate has the values of experiments. To add a gate, write a frozen dataclass with a
``curve``, here or in a module of your own, and a yaml file in conf/gate.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rgpo.core.cdf import (
    Arctan,
    Cdf,
    Erf,
    GaussianLog,
    Power,
    Rational,
    Sigmoid,
    SigmoidLog,
    SigmoidMatched,
    Softsign,
    Tanh,
)
from rgpo.core.gate import Gate, capped_ratio, ratio, ratio_minus_one, softplus
from rgpo.core.ranges import ABOVE_ONE, FRACTION, POSITIVE, accept, or_null

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["Ano", "Arctan", "Budget", "BySign", "Cdf", "Cispo", "Clamped", "Clip", "Erf", "Flipped", "GaussianLog", "Identity"]
__all__ += ["KLip", "Log", "Open", "Power", "Pspo", "Rational", "Sapo", "Sided", "Sigmoid", "SigmoidLog", "SigmoidMatched"]
__all__ += ["SignAwareSigmoid", "Softsign", "Spo", "Tanh"]

HALF = accept(lambda gate: isinstance(gate, Gate) and not gate.needs_batch, "must be a gate without state or bounds of a batch.")


@dataclass(frozen=True, kw_only=True)
class Log(Gate):
    """g = log r: REINFORCE (Williams 1992)."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return d


@dataclass(frozen=True, kw_only=True)
class Identity(Gate):
    """g = r: importance sampling, TRPO's surrogate (Schulman et al. 2015)."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return ratio(d)


@dataclass(frozen=True, kw_only=True)
class Sided(Gate):
    """Base class of gates with one curve for each sign of the advantage."""

    @abstractmethod
    def curves(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """The gate values for A >= 0 and for A < 0."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        positive, negative = self.curves(d)
        return positive.where(advantage >= 0, negative)


@dataclass(frozen=True, kw_only=True)
class BySign(Gate):
    """One gate for A >= 0 and another for A < 0; `scale: unit` divides both by the first one's w(1).

    TOPR (arXiv 2503.14286): w = 1 and min(r, 1). VESPO (arXiv 2602.10693): two Gamma thresholds.
    """

    positive: Gate = field(metadata=HALF)
    negative: Gate = field(metadata=HALF)

    @property
    def needs_logp_old(self) -> bool:
        return self.positive.needs_logp_old or self.negative.needs_logp_old

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return self.curve_at(d, advantage, None)

    def curve_at(self, d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        negative = self.negative(d, advantage, logp_old)
        return self.positive(d, advantage, logp_old).where(advantage >= 0, negative)


@dataclass(frozen=True, kw_only=True)
class Clip(Sided):
    """PPO-clip (Schulman et al. 2017, Eq. 7) as a gate; `cap` is dual-clip's c (Ye et al. 2020, Eq. 5), null for none."""

    eps_low: float = field(metadata=FRACTION)
    eps_high: float = field(metadata=FRACTION)
    cap: float | None = field(metadata=or_null(ABOVE_ONE))

    def curves(self, d: Tensor) -> tuple[Tensor, Tensor]:
        upper = d.clamp(max=math.log1p(self.eps_high)).exp()
        lower = ratio(d.clamp(min=math.log1p(-self.eps_low), max=None if self.cap is None else math.log(self.cap)))
        return upper, lower


@dataclass(frozen=True, kw_only=True)
class Pspo(Sided):
    """PPO-clip of the smoothed ratio (1-a) r + a, the ratio of (1-a) pi + a pi_old to pi_old (PSPO).

    w = (1-a) r while (1-a) r + a < 1 + eps_high for A >= 0, and > 1 - eps_low for A < 0.
    """

    smoothing: float = field(metadata=FRACTION)  # a
    eps_low: float = field(metadata=FRACTION)
    eps_high: float = field(metadata=FRACTION)

    def curves(self, d: Tensor) -> tuple[Tensor, Tensor]:
        keep = 1 - self.smoothing
        low = 1 - self.eps_low / keep
        upper = d.clamp(max=math.log1p(self.eps_high / keep)).exp()
        lower = ratio(d) if low <= 0 else ratio(d.clamp(min=math.log(low)))
        return keep * upper + self.smoothing, keep * lower + self.smoothing


@dataclass(frozen=True, kw_only=True)
class KLip(Sided):
    """A soft clip, w = r (1 - sigma(dist/s)) with dist = r - (1+eps_high) for A >= 0, (1-eps_low) - r for A < 0.

    KLip-PPO (arXiv 2606.23932); s -> 0 is PPO's clip.
    """

    eps_low: float = field(metadata=FRACTION)
    eps_high: float = field(metadata=FRACTION)
    softness: float = field(metadata=accept(lambda s: 1e-4 <= s <= 1e4, "must lie in [1e-4, 1e4]."))  # s

    def curves(self, d: Tensor) -> tuple[Tensor, Tensor]:
        u, s = ratio_minus_one(d), self.softness
        upper = 1 + self.eps_high - s * softplus((self.eps_high - u) / s)
        return upper, 1 - self.eps_low + s * softplus((u + self.eps_low) / s)


@dataclass(frozen=True, kw_only=True)
class Ano(Sided):
    """w = r G'(r) for A >= 0, r G'(2-r) for A < 0, G'(x) = nu (1-E)/((1+E)(E+nu)), E = e^(k (x-1-eps)) (arXiv 2605.02320).

    Samples beyond 1 + eps are pulled back, by a force that vanishes as r grows. With z = k (x-1-eps), partial fractions give
    G = (nu/k) (B softplus(-z) + C softplus(log nu - z)), B = 2/(1-nu), C = -(1+nu)/(nu (1-nu)), whose terms vanish for large z;
    the terms of the other form grow linearly and cancel in single precision.
    """

    sharpness: float = field(metadata=accept(lambda k: 1e-4 <= k <= 1e4, "must lie in [1e-4, 1e4]."))
    nu: float = field(metadata=accept(lambda x: 1e-4 <= x <= 0.9, "must lie in [1e-4, 0.9]."))
    eps_high: float = field(metadata=FRACTION)

    def curves(self, d: Tensor) -> tuple[Tensor, Tensor]:
        u = ratio_minus_one(d)
        return self._integral(u), -self._integral(-u)

    def _integral(self, u: Tensor) -> Tensor:
        """G at x = 1 + u."""
        nu, z = self.nu, self.sharpness * (u - self.eps_high)
        terms = 2 * softplus(-z) - (1 + nu) / nu * softplus(math.log(nu) - z)
        return nu / (1 - nu) / self.sharpness * terms


@dataclass(frozen=True, kw_only=True)
class SignAwareSigmoid(Gate):
    """The pessimistic gate min(r A, h(r) A), h = 1 + (2/k) tanh(k (r-1)/2): PPO's min with a smooth knee (our choice).

    Where the step makes progress (A>=0 and r>1, or A<0 and r<1) the gate closes smoothly. On the other side the corrective
    gradient is kept, with the weight min(r, cap) so that it is bounded; the capped curve is therefore not the pessimistic one
    where A<0 and r > cap (docs/theory.md, section 4).
    """

    sharpness: float = field(metadata=POSITIVE)
    cap: float = field(metadata=ABOVE_ONE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        closing = 1 + (2 / self.sharpness) * (self.sharpness / 2 * ratio_minus_one(d)).tanh()
        return closing.where((d > 0) == (advantage >= 0), capped_ratio(d, self.cap))


@dataclass(frozen=True, kw_only=True)
class Cispo(Gate):
    """w = min(r, c): the clipped importance weight of CISPO (MiniMax-M1, arXiv 2506.13585), upper side."""

    cap: float = field(metadata=ABOVE_ONE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return capped_ratio(d, self.cap)


@dataclass(frozen=True, kw_only=True)
class Clamped(Gate):
    """w = clamp(r, floor, cap): CISPO's weight with both bounds (MiniMax-M1, arXiv 2506.13585, Eq. 5)."""

    floor: float | None = field(metadata=or_null(accept(lambda x: 1e-6 <= x <= 1, "must be positive and at most 1.")))
    cap: float = field(metadata=accept(lambda x: 1 <= x < math.inf, "must be a finite number, at least 1."))

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        if self.floor is None:
            return capped_ratio(d, self.cap)
        low = math.log(self.floor)
        return capped_ratio(d.clamp(min=low), self.cap) - self.floor * (low - d).relu()


@dataclass(frozen=True, kw_only=True)
class Flipped(Gate):
    """w = min(1/r, c): the weight that ASPO (arXiv 2510.06062) gives to A >= 0, larger where the policy has lost probability."""

    cap: float = field(metadata=ABOVE_ONE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return -capped_ratio(-d, self.cap)


@dataclass(frozen=True, kw_only=True)
class Sapo(Sided):
    """g = (4/k) sigma(k (r-1)), k = sharpness for A >= 0, sharpness_neg for A < 0 (SAPO, arXiv 2511.20347; P3O: both 4)."""

    sharpness: float = field(metadata=POSITIVE)
    sharpness_neg: float = field(metadata=POSITIVE)

    def curves(self, d: Tensor) -> tuple[Tensor, Tensor]:
        u = ratio_minus_one(d)
        pos = (4 / self.sharpness) * (self.sharpness * u).sigmoid()
        neg = (4 / self.sharpness_neg) * (self.sharpness_neg * u).sigmoid()
        return pos, neg


@dataclass(frozen=True, kw_only=True)
class Spo(Gate):
    """g A = r A - |A| (r-1)^2/(2 eps) (SPO, arXiv 2401.16025)."""

    eps_high: float = field(metadata=accept(lambda x: 1e-3 <= x < 1, "must lie between 0.001 and 1."))  # r^2/eps is finite

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        penalty = ratio_minus_one(d).square() / (2 * self.eps_high)
        return ratio(d) - penalty.where(advantage >= 0, -penalty)


@dataclass(frozen=True, kw_only=True)
class Budget(Gate):
    """h = sigma(k (b - sign(A) d))/sigma(k b): about 1 while a step stays within b nats of the reference (our choice).

    Meant for `gate@ref_gate`, with d = log pi/pi_ref; steps beyond the budget fade out.
    """

    sharpness: float = field(metadata=POSITIVE)
    budget: float = field(metadata=POSITIVE)

    constants_depend_on_sharpness: ClassVar[bool] = True

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        away = d.where(advantage >= 0, -d)
        return (self.sharpness * (self.budget - away)).sigmoid() * (1 + math.exp(-self.sharpness * self.budget))


@dataclass(frozen=True, kw_only=True)
class Open(Gate):
    """g = 1: the null object for `gate@ref_gate`."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return d * 0 + 1
