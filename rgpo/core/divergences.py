"""Divergences and weight statistics over samples; estimators are pure and keep the shape of x.

x = log q/p on samples of p. On samples of p: E[-x] = E[e^x - 1 - x] = KL(p || q).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

X_MAX = 40.0  # nats; e^40 times any log ratio below 300 is finite in float32
R_MAX = 30.0  # nats; e^30 times k3 times a coefficient of 1,000 is finite in float32 for log ratios up to 300


def k1(x: Tensor) -> Tensor:
    """-x: unbiased for KL(p || q), of either sign (Schulman 2020)."""
    return -x


def k2(x: Tensor) -> Tensor:
    """x^2/2: biased, of low variance; E_p of its gradient by p's parameters is that of KL(p || q) (Schulman 2020)."""
    return x.square() / 2


def k3(x: Tensor) -> Tensor:
    """e^x - 1 - x: unbiased for KL(p || q), never negative (Schulman 2020); beyond x = 40 it continues as its tangent.

    E_p of its gradient by p's parameters is that of KL(q || p); by q's parameters it is that of KL(p || q).
    """
    bounded = x.clamp(max=X_MAX)
    return bounded.expm1() - bounded + math.expm1(X_MAX) * (x - X_MAX).relu()


def reweighted_kl(d_old: Tensor, d: Tensor) -> Tensor:
    """sg[r k3(-d)] + sg[r d] (d - sg[d]) on samples of old: value and gradient are unbiased for KL(pi || q) at fixed states.

    d_old = log pi/old, r = e^d_old, d = log pi/q, nats, s = grad log pi. The value: E_old[r (q/pi - 1 + d)] = 1 - 1 + E_pi[d].
    The gradient of r k3(-d), whose factors both move with log pi, is r s (e^-d - 1 + d) + r (1 - e^-d) s = r d s, and
    E_old[r d s] = E_pi[d s] = grad KL(pi || q), because E_pi[grad d] = E_pi[s] = 0. It is written with stop-gradients, since
    its two terms cancel in float32. Beyond d_old = 30 r counts as e^30.
    """
    ratio, fixed = d_old.detach().clamp(max=R_MAX).exp(), d.detach()
    return ratio * k3(-fixed) + ratio * fixed * (d - fixed)


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
