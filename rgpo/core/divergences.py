"""Divergences and weight statistics over samples; estimators are pure and keep the shape of x.

x = log q/p on samples of p. On samples of p: E[-x] = E[e^x - 1 - x] = KL(p || q).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

X_MAX = 40.0  # nats; e^40 times any log ratio below 300 is finite in float32


def k1(x: Tensor) -> Tensor:
    """-x: unbiased for KL(p || q), of either sign (Schulman 2020)."""
    return -x


def k2(x: Tensor) -> Tensor:
    """x^2/2: biased, low variance, its gradient is that of KL (Schulman 2020)."""
    return x.square() / 2


def k3(x: Tensor) -> Tensor:
    """e^x - 1 - x: unbiased for KL(p || q), never negative (Schulman 2020); beyond x = 40 it continues as its tangent."""
    bounded = x.clamp(max=X_MAX)
    return bounded.expm1() - bounded + math.expm1(X_MAX) * (x - X_MAX).relu()


def effective_sample_size(weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 / n in [0, 1]; 0 if every weight is 0. weight (..., n) -> (...)."""
    share = weight.double() / weight.abs().amax(-1, keepdim=True).double().clamp(min=1e-300)
    return share.sum(-1).square() / share.square().sum(-1).clamp(min=1e-300) / weight.shape[-1]


def tail_index(log_ratio: Tensor, fraction: float = 0.05) -> Tensor:
    """Hill's estimator of the tail index of r = e^d over its top fraction: k / sum (d_(i) - d_(k+1)); inf without spread.

    log_ratio (n,); at least ten order statistics are used if there are that many.
    """
    count = min(max(int(fraction * log_ratio.numel()), 10), log_ratio.numel() - 1)
    top = log_ratio.double().topk(count + 1).values
    return count / (top[:-1] - top[-1]).sum()
