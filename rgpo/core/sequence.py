"""Sequences of tokens: sequence-level ratios, the token weights of each reduction, and corrections for another sampler.

Shapes: B sequences, T tokens. A mask_BT is bool; its n True entries are the tokens, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rgpo.core.ranges import POSITIVE, accept, check_fields, one_of, or_null
from rgpo.errors import require

if TYPE_CHECKING:
    from torch import Tensor


def sequence_sum(x_n: Tensor, mask_BT: Tensor) -> Tensor:
    """sum_t x_it at each token of sequence i, (n,)."""
    x_BT = x_n.new_zeros(mask_BT.shape).masked_scatter(mask_BT, x_n)
    return x_BT.sum(-1, keepdim=True).expand_as(x_BT)[mask_BT]


def sequence_log_ratio(log_ratio_n: Tensor, mask_BT: Tensor) -> Tensor:
    """d_i = sum_t d_it / |y_i| at each token of sequence i, nats per token: log (pi_new(y_i)/pi_old(y_i))^(1/|y_i|), (n,).

    A gate of d_i under ``sequence_mean`` has the gradient -w(d_i) A_i grad log pi(y_i) / |y_i|. GSPO (arXiv 2507.18071), Eq. 7.
    """
    d_BT = log_ratio_n.new_zeros(mask_BT.shape).masked_scatter(mask_BT, log_ratio_n)
    mean_B1 = d_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return mean_B1.expand_as(d_BT)[mask_BT]


@dataclass(frozen=True)
class RatioLevel:
    """The log ratio that a gate sees at each token.

    token              the token's own
    sequence           d_i, the mean over its sequence (GSPO, arXiv 2507.18071)
    sequence_token     the same value; its gradient is that of the token's own log-probability (GSPO-token, Eq. 14)
    sequence_sum       sum_t d_it, the ratio of whole sequences, with the gradient of the token's own (VESPO, arXiv 2602.10693)
    sequence_clipped   the mean of d_it clipped to at most high where A >= 0, at least -low where A < 0 (GMPO, arXiv 2507.20673)

    clip = (low, high), nats. logp_old is averaged or summed over the same tokens.
    """

    kind: str = "sequence"
    clip: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Raises: ConfigError if clip is missing, would be ignored, or is not a pair of positive numbers."""
        clip = self.clip
        if self.kind == "sequence_clipped":
            pair = clip is not None and len(clip) == 2 and all(0 < x < math.inf for x in clip)
            shown = "null" if clip is None else list(clip)
            require(pair, "task.ratio_clip", shown, "must be two positive numbers, [low, high], for task.ratio=sequence_clipped.")
        else:
            require(clip is None, "task.ratio_clip", clip, "clips the tokens of task.ratio=sequence_clipped only; leave it null.")

    def __call__(self, log_ratio_n: Tensor, advantage_n: Tensor, mask_BT: Tensor) -> Tensor:
        d = log_ratio_n
        if self.kind == "sequence_clipped" and self.clip is not None:
            d = d.clamp(max=self.clip[1]).where(advantage_n >= 0, d.clamp(min=-self.clip[0]))
        value = self.of_sequence(d, mask_BT)
        return value.detach() + d - d.detach() if self.kind in ("sequence_token", "sequence_sum") else value

    def of_sequence(self, x_n: Tensor, mask_BT: Tensor) -> Tensor:
        """x itself, its mean or its sum over each token's sequence, (n,)."""
        if self.kind == "token":
            return x_n
        return (sequence_sum if self.kind == "sequence_sum" else sequence_log_ratio)(x_n, mask_BT)


RATIOS = ("token", "sequence", "sequence_token", "sequence_sum", "sequence_clipped")


def token_mean(mask_BT: Tensor) -> Tensor:
    """Weights (B, T) that turn a sum into the mean over all tokens: mask / sum mask (DAPO, arXiv 2503.14476)."""
    return mask_BT / mask_BT.sum()


def sequence_mean(mask_BT: Tensor) -> Tensor:
    """Weights (B, T) that turn a sum into the mean of the sequences' means: mask / |y_i| / B; no sequence may be empty."""
    return mask_BT / mask_BT.sum(-1, keepdim=True) / len(mask_BT)


def mean_of_sums(mask_BT: Tensor) -> Tensor:
    """Weights (B, T) that turn a sum into the mean of the sequences' sums: mask / B (LUSPO, arXiv 2602.05261).

    Dividing it by a constant length, instead of each sequence's own, gives Dr. GRPO's reduction (arXiv 2503.20783).
    """
    return mask_BT / len(mask_BT)


REDUCTIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "sequence_sum": mean_of_sums, "constant": mean_of_sums}


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The weight pi_old/pi_sampler of tokens that were not sampled from pi_old, but by another engine or an older policy.

    level     none: 1; token: the token's ratio; sequence: exp of the sum of its log ratios; sequence_mean: exp of their mean
    outside   a ratio outside [low, high] becomes: clamp, the bound (TIS); drop, 0 (MIS; with both bounds IcePop)
    max_kl    nats per token: at each gradient step, sequences with A < 0 and mean log(pi_sampler/pi) above it have weight 0
              (off-policy sequence mask, DeepSeek-V3.2); null: no mask

    Raises: ConfigError for a level without a bound, or a bound without a level.
    """

    level: str = field(metadata=one_of("none", "token", "sequence", "sequence_mean"))
    outside: str = field(metadata=one_of("clamp", "drop"))
    low: float | None = field(metadata=or_null(accept(lambda x: 1e-6 <= x <= 1, "must be positive and at most 1.")))
    high: float | None = field(metadata=or_null(accept(lambda x: 1 <= x < math.inf, "must be a finite number, at least 1.")))
    max_kl: float | None = field(metadata=or_null(POSITIVE))

    def __post_init__(self) -> None:
        check_fields(self, "task.correction")
        bounded = self.low is not None or self.high is not None
        require(
            bounded == (self.level != "none"),
            "task.correction.level",
            self.level,
            "goes with low or high, and none with neither.",
        )

    def check_cap(self, cap: float | None) -> None:
        """Raises: ConfigError if the sampler has a correction cap of its own in addition to this level."""
        remedy = f"is a second correction beside task.correction.level={self.level}; use null."
        require(cap is None or self.level == "none", "task.sampler.correction_cap", cap, remedy)

    def weights(self, gap_n: Tensor, mask_BT: Tensor) -> Tensor:
        """Weights (n,) from gap = log pi_old - log pi_sampler, nats."""
        if self.level == "none":
            return gap_n.new_ones(gap_n.shape)
        kind = {"token": "token", "sequence": "sequence_sum", "sequence_mean": "sequence"}[self.level]
        x = RatioLevel(kind).of_sequence(gap_n, mask_BT)
        low = -FARTHEST if self.low is None else math.log(self.low)
        high = FARTHEST if self.high is None else math.log(self.high)
        ratio = x.clamp(low, high).exp()
        return ratio if self.outside == "clamp" else ratio.masked_fill((x < low) | (x > high), 0.0)


UNCORRECTED = Correction(level="none", outside="clamp", low=None, high=None, max_kl=None)
FARTHEST = 20.0  # nats; limits a log ratio that has no bound


def keep_near(log_ratio_n: Tensor, advantage_n: Tensor, mask_BT: Tensor, max_kl: float) -> Tensor:
    """1 for tokens of sequences with A >= 0 or mean log(pi_sampler/pi) <= max_kl, else 0, (n,); log_ratio: log(pi/pi_sampler)."""
    near = -sequence_log_ratio(log_ratio_n.detach(), mask_BT) <= max_kl
    return (near | (advantage_n >= 0)).to(advantage_n.dtype)
