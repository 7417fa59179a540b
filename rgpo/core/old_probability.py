"""Gates whose bounds depend on the old probability p_old of each sample; p = p_old r is the new one.

    gate     w(r)
    DppoTV   min(r, c) while p - p_old <= delta_high for A >= 0, p_old - p <= delta_low for A < 0
    DppoKL   min(r, c) while KL(p_old || p) of the two outcomes "this action or another" is small, or p moves the other way
    Ipo      r while |p - p_old| <= delta, for either sign of A

A bound on p gives rare actions a wider band of r; a band of fixed width would keep them rare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rgpo.core.gate import OldProbabilityGate, capped_ratio, ratio, softplus
from rgpo.core.ranges import ABOVE_ONE, FRACTION, POSITIVE

if TYPE_CHECKING:
    from torch import Tensor

P_MAX = 1 - 1e-6  # cap on p in the KL of two outcomes, for densities and for probabilities that were rounded up to 1


def log_ratio_above(delta: float, logp_old: Tensor) -> Tensor:
    """log r at which p - p_old = delta."""
    return softplus(math.log(delta) - logp_old)


def log_ratio_below(delta: float, logp_old: Tensor) -> Tensor:
    """log r at which p_old - p = delta; -inf where p_old <= delta."""
    return (-(math.log(delta) - logp_old).clamp(max=0).exp()).log1p()


@dataclass(frozen=True, kw_only=True)
class DppoTV(OldProbabilityGate):
    """DPPO's total-variation mask on the truncated ratio (arXiv 2602.04879; prime-rl's default)."""

    delta_low: float = field(metadata=FRACTION)
    delta_high: float = field(metadata=FRACTION)
    cap: float = field(metadata=ABOVE_ONE)

    def curve_from(self, d: Tensor, advantage: Tensor, logp_old: Tensor) -> Tensor:
        upper = capped_ratio(d.clamp(max=log_ratio_above(self.delta_high, logp_old)), self.cap)
        lower = capped_ratio(d.clamp(min=log_ratio_below(self.delta_low, logp_old)), self.cap)
        return upper.where(advantage >= 0, lower)


@dataclass(frozen=True, kw_only=True)
class DppoKL(OldProbabilityGate):
    """DPPO's binary-KL mask, KL = p_old log(p_old/p) + (1-p_old) log((1-p_old)/(1-p)) (arXiv 2602.04879).

    The bounds on r have no closed form: outside them g is min(r, c) without gradient.
    """

    delta_low: float = field(metadata=POSITIVE)  # nats
    delta_high: float = field(metadata=POSITIVE)  # nats
    cap: float = field(metadata=ABOVE_ONE)

    def curve_from(self, d: Tensor, advantage: Tensor, logp_old: Tensor) -> Tensor:
        fixed = d.detach()
        p_old = logp_old.exp().clamp(max=P_MAX)
        p = (logp_old + fixed).exp().clamp(max=P_MAX)
        kl = -p_old * fixed + (1 - p_old) * ((-p_old).log1p() - (-p).log1p())
        upper, lower = (kl <= self.delta_high) | (fixed <= 0), (kl <= self.delta_low) | (fixed >= 0)
        return capped_ratio(d.where(upper.where(advantage >= 0, lower), fixed), self.cap)


@dataclass(frozen=True, kw_only=True)
class Ipo(OldProbabilityGate):
    """w = r 1[|p - p_old| <= delta] for either sign of A (prime-rl's ipo)."""

    delta: float = field(metadata=FRACTION)

    def curve_from(self, d: Tensor, advantage: Tensor, logp_old: Tensor) -> Tensor:
        low, high = log_ratio_below(self.delta, logp_old), log_ratio_above(self.delta, logp_old)
        return ratio(d.clamp(min=low, max=high))
