"""Acceptance gates: curves g over d = log r whose slope w = dg/dd = r g'(r) is the weight on A grad log pi.

    gate             g(d), r = e^d                                    w                               w(1)
    Log              d                                                1                               1
    Identity         r                                                r                               1
    Clip  A>=0       min(r, 1+eps_high)                               r 1[r < 1+eps_high]             1
          A<0        min(max(r, 1-eps_low), c)                        r 1[1-eps_low < r < c]          1
    Sigmoid          sigma(k (r-1))                                   (k/4) r sech2(k (r-1)/2)        k/4
    SigmoidLog       sigma(k d)                                       (k/4) sech2(k d/2)              k/4
    SigmoidMatched   sigma(k d - 2 artanh(1/k))                       (k/4) sech2(k d/2 - artanh 1/k) (k^2-1)/(4k)
    SignAwareSigmoid A h, h = 1 + (2/k) tanh(k (r-1)/2) where the     r sech2(k (r-1)/2), else        1
                     step makes progress, else r, capped              min(r, c)
    GaussianLog      Phi(k d)                                         k phi(k d)                      k/sqrt(2 pi)
    Erf              (1 + erf(k (r-1)))/2                             (k/sqrt pi) r exp(-k^2 (r-1)^2) k/sqrt pi
    Arctan           1/2 + arctan(k (r-1))/pi                         (k/pi) r/(1 + k^2 (r-1)^2)      k/pi
    Softsign         (1 + k (r-1)/(1 + k|r-1|))/2                     (k/2) r/(1 + k|r-1|)^2          k/2
    Tanh             (1 + tanh(k (r-1)))/2                            (k/2) r sech2(k (r-1))          k/2
    Power            1 - (1 + r/c)^-k                                 (k r/c) (1 + r/c)^(-k-1)        k/c (1+1/c)^(-k-1)
    Rational         r^k/(c^k + r^k)                                  k g (1-g)                       k c^k/(1+c^k)^2
    Cispo            r up to c, then c (1 + log(r/c))                 min(r, c)                       1
    Sapo             (4/k) sigma(k (r-1)), k by the sign of A         r sech2(k (r-1)/2)              1
    Spo              r - sign(A) (r-1)^2/(2 eps)                      r (1 - sign(A) (r-1)/eps)       1
    Budget           sigma(k (b - sign(A) d))/sigma(k b)              fades where d leaves its budget
    Open             1                                                0                               0

The weight is never written a second time: ``rgpo.core.gate.weight`` takes it by autograd. Everything is finite in value and
slope for |d| <= 10,000 in float32 and bfloat16, because no exponential ever sees an unclamped d.

Parameters have no defaults here; those of an experiment are in conf/gate. To add a gate: one frozen dataclass with a ``curve``
here, or in any module of yours, and one yaml in conf/gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rgpo.core.gate import Gate, capped_ratio, ratio, ratio_minus_one
from rgpo.core.ranges import ABOVE_ONE, FRACTION, POSITIVE, accept, or_null

if TYPE_CHECKING:
    from torch import Tensor


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
class Clip(Gate):
    """PPO-clip (Schulman et al. 2017, Eq. 7) as a gate; `cap` is dual-clip's c (Ye et al. 2020, Eq. 5), null for none."""

    eps_low: float = field(metadata=FRACTION)
    eps_high: float = field(metadata=FRACTION)
    cap: float | None = field(metadata=or_null(ABOVE_ONE))

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        upper = d.clamp(max=math.log1p(self.eps_high)).exp()
        lower = ratio(d.clamp(min=math.log1p(-self.eps_low), max=None if self.cap is None else math.log(self.cap)))
        return upper.where(advantage >= 0, lower)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Gate):
    """g = sigma(k (r-1)): the paper's gate, read as a sigmoid in r (whether r or log r is not known)."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * ratio_minus_one(d)).sigmoid()


@dataclass(frozen=True, kw_only=True)
class SigmoidLog(Gate):
    """g = sigma(k log r): the other reading of the paper's gate."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * d).sigmoid()


@dataclass(frozen=True, kw_only=True)
class SigmoidMatched(Gate):
    """g = sigma(k d - 2 artanh(1/k)), k > 1: a sigmoid in log r shifted so that dw/dr(1) = w(1), as IS has (our choice)."""

    sharpness: float = field(metadata=ABOVE_ONE)

    constants_depend_on_sharpness: ClassVar[bool] = True

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        k = self.sharpness
        return (k * d - math.log((k + 1) / (k - 1))).sigmoid()


@dataclass(frozen=True, kw_only=True)
class SignAwareSigmoid(Gate):
    """The pessimistic gate min(r A, h(r) A), h = 1 + (2/k) tanh(k (r-1)/2): PPO's min with a smooth knee (our choice).

    Where the step makes progress (A>=0 and r>1, A<0 and r<1) the gate closes smoothly; on the other side the correcting
    gradient stays whole, its weight capped at min(r, cap) so that it is bounded; where A<0 and r > cap the capped curve is not
    the pessimistic one (docs/theory.md, section 4).
    """

    sharpness: float = field(metadata=POSITIVE)
    cap: float = field(metadata=ABOVE_ONE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        closing = 1 + (2 / self.sharpness) * (self.sharpness / 2 * ratio_minus_one(d)).tanh()
        return closing.where((d > 0) == (advantage >= 0), capped_ratio(d, self.cap))


@dataclass(frozen=True, kw_only=True)
class GaussianLog(Gate):
    """g = Phi(k d): a Gaussian weight of width 1/k in log r (GIPO's shape)."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return ((self.sharpness / math.sqrt(2)) * d).erf() / 2 + 0.5


@dataclass(frozen=True, kw_only=True)
class Erf(Gate):
    """g = (1 + erf(k (r-1)))/2 (the gate study, arXiv 2602.19345, mapped to [0, 1])."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * ratio_minus_one(d)).erf() / 2 + 0.5


@dataclass(frozen=True, kw_only=True)
class Arctan(Gate):
    """g = 1/2 + arctan(k (r-1))/pi (the gate study, arXiv 2602.19345, mapped to [0, 1])."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * ratio_minus_one(d)).atan() / math.pi + 0.5


@dataclass(frozen=True, kw_only=True)
class Softsign(Gate):
    """g = (1 + z/(1 + |z|))/2, z = k (r-1) (the gate study, arXiv 2602.19345, mapped to [0, 1])."""

    sharpness: float = field(metadata=accept(lambda k: 0 < k <= 1e20, "must be positive and at most 1e20."))  # z is finite

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        z = self.sharpness * ratio_minus_one(d)
        return z / (1 + z.abs()) / 2 + 0.5


@dataclass(frozen=True, kw_only=True)
class Tanh(Gate):
    """g = (1 + tanh(k (r-1)))/2: the sigmoid of twice the sharpness."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * ratio_minus_one(d)).tanh() / 2 + 0.5


@dataclass(frozen=True, kw_only=True)
class Power(Gate):
    """g = 1 - (1 + r/c)^-k (our choice)."""

    sharpness: float = field(metadata=POSITIVE)
    center: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        z = d - math.log(self.center)
        return -(-self.sharpness * z.logaddexp(z * 0)).expm1()


@dataclass(frozen=True, kw_only=True)
class Rational(Gate):
    """g = r^k/(c^k + r^k), Hill's curve; c = 1 is the sigmoid in log r (our choice)."""

    sharpness: float = field(metadata=POSITIVE)
    center: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * (d - math.log(self.center))).sigmoid()


@dataclass(frozen=True, kw_only=True)
class Cispo(Gate):
    """w = min(r, c): the clipped importance weight of CISPO (MiniMax-M1, arXiv 2506.13585), upper side."""

    cap: float = field(metadata=ABOVE_ONE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return capped_ratio(d, self.cap)


@dataclass(frozen=True, kw_only=True)
class Sapo(Gate):
    """g = (4/k) sigma(k (r-1)), k = sharpness for A >= 0, sharpness_neg for A < 0 (SAPO, arXiv 2511.20347; P3O: both 4)."""

    sharpness: float = field(metadata=POSITIVE)
    sharpness_neg: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        u = ratio_minus_one(d)
        pos = (4 / self.sharpness) * (self.sharpness * u).sigmoid()
        neg = (4 / self.sharpness_neg) * (self.sharpness_neg * u).sigmoid()
        return pos.where(advantage >= 0, neg)


@dataclass(frozen=True, kw_only=True)
class Spo(Gate):
    """g A = r A - |A| (r-1)^2/(2 eps) (SPO, arXiv 2401.16025)."""

    eps_high: float = field(metadata=accept(lambda x: 1e-3 <= x < 1, "must lie between 0.001 and 1."))  # r^2/eps is finite

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        penalty = ratio_minus_one(d).square() / (2 * self.eps_high)
        return ratio(d) - penalty.where(advantage >= 0, -penalty)


@dataclass(frozen=True, kw_only=True)
class Budget(Gate):
    """h = sigma(k (b - sign(A) d))/sigma(k b): one where a step keeps within b nats of the reference (our choice).

    Meant for `gate@ref_gate`, with d = log pi/pi_ref; a step that moves further away than the budget fades out.
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
