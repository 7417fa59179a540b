"""Gates whose bounds are computed from all samples of a gradient step.

    gate      bounds from the batch                                    w(r)
    M2po      the largest t at which mean d^2 of the samples           r 1[d < t] for A >= 0, r 1[d > -t] for A < 0
              within t is at most tau
    Bapo      the first clip in a list that gives samples with         as Clip's
              A >= 0 their share of the loss
    ClipCov   means of A and log pi, and a draw                        as Clip's, 0 at drawn samples of high covariance
    KlCov     means of A and log pi, and a quantile of covariance      r; r - c sign(d)/A at the highest covariances
    R2vpo     the mean ratio m                                         r (1 - 2 lambda (r - m)/A)

The covariance of a sample is (A - mean A)(log pi - mean log pi). All forward passes of a gradient step form one batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rgpo.core.gate import BatchGate, GateBatch, ratio
from rgpo.core.ranges import FINITE, FRACTION, POSITIVE, accept
from rgpo.errors import require

if TYPE_CHECKING:
    from torch import Tensor

LEAST_ADVANTAGE = 1e-6  # lower bound on |A| when dividing by A


def live(batch: GateBatch) -> Tensor:
    """1 for samples that count, 0 for those of weight 0."""
    x = batch.log_ratio * 0 + 1
    return x if batch.weight is None else x.masked_fill(batch.weight == 0, 0.0)


def mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of the samples that count, 0 if there is none."""
    return x.masked_fill(mask == 0, 0.0).sum() / mask.sum().clamp(min=1)


def quotient(x: Tensor, advantage: Tensor) -> Tensor:
    """x/A, with |A| at least LEAST_ADVANTAGE."""
    size = advantage.abs().clamp(min=LEAST_ADVANTAGE)
    return x / size.where(advantage >= 0, -size)


def clipped(d: Tensor, advantage: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """PPO-clip's g with bounds on log r."""
    return ratio(d.clamp(max=high).where(advantage >= 0, d.clamp(min=low)))


@dataclass(frozen=True, kw_only=True)
class M2po(BatchGate):
    """PPO-clip at |d| = t, the largest t for which the samples within it have a mean d^2 of at most tau (M2PO, arXiv 2510.01161).

    Samples that no clip can affect (A >= 0 and r < 1, or A < 0 and r > 1) count as d = 0.
    """

    second_moment: float = field(metadata=POSITIVE)  # tau

    def bounds(self, batch: GateBatch) -> tuple[Tensor, ...]:
        d, mask = batch.log_ratio, live(batch)
        progress = ((d > 0) == (batch.advantage >= 0)) & (mask > 0)
        distance, order = d.abs().masked_fill(~progress, 0.0).flatten().sort()
        kept = distance.square().cumsum(0) <= self.second_moment * mask.flatten()[order].cumsum(0).clamp(min=1)
        return (distance.masked_fill(~kept, 0.0).amax().masked_fill(kept.all(), math.inf),)

    def curve_within(self, bounds: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        (farthest,) = bounds
        return clipped(d, advantage, -farthest, farthest)


@dataclass(frozen=True, kw_only=True)
class Bapo(BatchGate):
    """The first clip [low, high] at which samples with A >= 0 have a given share of sum |g A| (BAPO, arXiv 2510.18927).

    The bounds rise in steps: high from high_min to high_max, then low from low_min to low_max. If no clip suffices, the last
    one is used. Raising low cannot raise the share, since |g A| of samples with A < 0 grows with it; the authors' code
    (github.com/WooooDyy/BAPO) measures the share in the same way but raises low first.

    Raises: ConfigError if low_min > low_max or high_min > high_max.
    """

    share: float = field(metadata=FRACTION)  # rho_0
    low_min: float = field(metadata=FRACTION)
    low_max: float = field(metadata=FRACTION)
    low_step: float = field(metadata=accept(lambda x: 1e-3 <= x < 1, "must lie between 0.001 and 1."))
    high_min: float = field(metadata=accept(lambda x: 1 < x <= 10, "must lie between 1 and 10."))
    high_max: float = field(metadata=accept(lambda x: 1 < x <= 10, "must lie between 1 and 10."))
    high_step: float = field(metadata=accept(lambda x: 1e-2 <= x <= 100, "must lie between 0.01 and 100."))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low_min <= self.low_max, "gate.low_min", self.low_min, f"must be at most low_max={self.low_max}.")
        require(self.high_min <= self.high_max, "gate.high_min", self.high_min, f"must be at most high_max={self.high_max}.")

    def clips(self) -> list[tuple[float, float]]:
        """(low, high) in the order in which they are tried."""
        highs = [self.high_min + i * self.high_step for i in range(steps(self.high_max - self.high_min, self.high_step) + 1)]
        lows = [self.low_min + i * self.low_step for i in range(1, steps(self.low_max - self.low_min, self.low_step) + 1)]
        return [(self.low_min, high) for high in highs] + [(low, highs[-1]) for low in lows]

    def bounds(self, batch: GateBatch) -> tuple[Tensor, ...]:
        import torch

        d, size = batch.log_ratio.flatten(), (batch.advantage.abs() * live(batch)).flatten()
        low, high = torch.tensor(self.clips(), dtype=d.dtype, device=d.device).log().T  # (2, K)
        positive = batch.advantage.flatten() >= 0
        part = ratio(d).clamp(max=1e6) * size  # (n,)
        above = torch.minimum(part, high.exp()[:, None] * size).masked_fill(~positive, 0.0).sum(-1)  # (K,)
        below = torch.maximum(part, low.exp()[:, None] * size).masked_fill(positive, 0.0).sum(-1)
        enough = above >= self.share * (above + below)
        order = torch.arange(len(low), device=d.device)
        first = order.masked_fill(~enough, len(low) - 1).amin()
        chosen = order == first
        return (low * chosen).sum(), (high * chosen).sum()

    def curve_within(self, bounds: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        return clipped(d, advantage, *bounds)


def steps(width: float, step: float) -> int:
    """Number of whole steps that fit into a width, up to rounding errors."""
    return max(int(width / step + 1e-9), 0)


@dataclass(frozen=True, kw_only=True)
class CovarianceGate(BatchGate):
    """Base class of gates that single out samples with a high covariance of A and log pi (arXiv 2505.22617).

    If logp_old is not given, d is used as log pi.
    """

    fraction: float = field(metadata=FRACTION)  # of the samples

    def means(self, batch: GateBatch) -> tuple[Tensor, Tensor]:
        """Mean A and mean log pi."""
        mask = live(batch)
        return mean(batch.advantage, mask), mean(logp_new(batch.log_ratio, batch.logp_old), mask)


def logp_new(d: Tensor, logp_old: Tensor | None) -> Tensor:
    """log pi of the new policy, detached; d if logp_old is None."""
    return d.detach() if logp_old is None else d.detach() + logp_old


def draw(d: Tensor, advantage: Tensor) -> Tensor:
    """Hash each sample to a pseudorandom number in [0, 1); needs no generator, so that gradient steps can be compiled."""
    x = (d * 12.9898 + advantage * 78.233).sin() * 43758.5453
    return x - x.floor()


@dataclass(frozen=True, kw_only=True)
class ClipCov(CovarianceGate):
    """PPO-clip that drops the gradient of a few random samples with a high covariance (Clip-Cov, arXiv 2505.22617).

    They are drawn from the samples that PPO does not clip and whose covariance is between cov_low and cov_high; their number
    is `fraction` of all samples, at least one. Drawing by a hash of the sample is our choice.
    """

    eps_low: float = field(metadata=FRACTION)
    eps_high: float = field(metadata=FRACTION)
    cov_low: float = field(metadata=FINITE)
    cov_high: float = field(metadata=FINITE)

    def bounds(self, batch: GateBatch) -> tuple[Tensor, ...]:
        means = self.means(batch)
        d, mask = batch.log_ratio, live(batch)
        among = self._candidates(means, d, batch.advantage, batch.logp_old) & (mask > 0)
        number = draw(d, batch.advantage)
        ranked = number.masked_fill(~among, 2.0).flatten().sort().values
        wanted = (mask.sum() * self.fraction).floor().clamp(min=1)
        position = (mask * 0 + 1).flatten().cumsum(0)
        return *means, ranked.masked_fill(position > wanted, 0.0).amax()

    def _candidates(self, means: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        covariance = (advantage - means[0]) * (logp_new(d, logp_old) - means[1])
        clipped_away = (d > math.log1p(self.eps_high)).where(advantage >= 0, d < math.log1p(-self.eps_low))
        return (covariance > self.cov_low) & (covariance < self.cov_high) & ~clipped_away

    def curve_within(self, bounds: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        *means, last = bounds
        fixed = d.detach()
        drawn = self._candidates(tuple(means), fixed, advantage, logp_old) & (draw(fixed, advantage) <= last)
        value = clipped(d, advantage, math.log1p(-self.eps_low), math.log1p(self.eps_high))
        return value.masked_fill(drawn, 0.0)


@dataclass(frozen=True, kw_only=True)
class KlCov(CovarianceGate):
    """-g A = -r A + coef |d| at the samples with the highest covariance, -r A elsewhere (KL-Cov, arXiv 2505.22617).

    The penalty applies to `fraction` of all samples, at least one.
    """

    coef: float = field(metadata=POSITIVE)

    def bounds(self, batch: GateBatch) -> tuple[Tensor, ...]:
        means = self.means(batch)
        mask = live(batch)
        covariance = self._covariance(means, batch.log_ratio, batch.advantage, batch.logp_old)
        ranked = covariance.masked_fill(mask == 0, -math.inf).flatten().sort(descending=True).values
        position = (mask * 0 + 1).flatten().cumsum(0)
        wanted = (mask.sum() * self.fraction).floor().clamp(min=1)
        return *means, ranked.masked_fill(position > wanted, math.inf).amin()

    def _covariance(self, means: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        return (advantage - means[0]) * (logp_new(d, logp_old) - means[1])

    def curve_within(self, bounds: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        *means, least = bounds
        chosen = self._covariance(tuple(means), d.detach(), advantage, logp_old) >= least
        penalty = quotient(self.coef * d.abs(), advantage)
        return ratio(d) - penalty.masked_fill(~chosen, 0.0)


@dataclass(frozen=True, kw_only=True)
class R2vpo(BatchGate):
    """-g A = -r A + lambda (r - m)^2, m the batch's mean ratio: the variance of r as a penalty (R2VPO, arXiv 2601.03320).

    lambda is constant here, whereas the paper adapts it by dual ascent. m is detached, which leaves the gradient of the
    variance unchanged.
    """

    coef: float = field(metadata=accept(lambda x: 0 < x <= 1e6, "must be positive and at most 1e6."))  # lambda

    def bounds(self, batch: GateBatch) -> tuple[Tensor, ...]:
        return (mean(ratio(batch.log_ratio.clamp(max=20.0)), live(batch)),)

    def curve_within(self, bounds: tuple[Tensor, ...], d: Tensor, advantage: Tensor, logp_old: Tensor | None) -> Tensor:
        near = ratio(d.clamp(max=20.0))  # its square is finite
        return ratio(d) - quotient(self.coef * (near - bounds[0]).square(), advantage)
