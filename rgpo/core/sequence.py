"""Tokens of sequences: ratios of whole sequences, and weights of a token in a mean. Names: B sequences, T tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sequence_log_ratio(log_ratio_n: Tensor, mask_BT: Tensor) -> Tensor:
    """d_i = sum_t d_it / |y_i| at each token of sequence i, nats per token: log (pi_new(y_i)/pi_old(y_i))^(1/|y_i|), (n,).

    mask_BT: bool, its n True entries are the tokens, row by row. A gate of d_i under ``sequence_mean`` has the gradient
    -w(d_i) A_i grad log pi(y_i) / |y_i|. GSPO (arXiv 2507.18071), Eq. 7.
    """
    d_BT = log_ratio_n.new_zeros(mask_BT.shape).masked_scatter(mask_BT, log_ratio_n)
    mean_B1 = d_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return mean_B1.expand_as(d_BT)[mask_BT]


def token_mean(mask_BT: Tensor) -> Tensor:
    """Weights (B, T) under which a sum is the mean over all tokens: mask / sum mask (DAPO, arXiv 2503.14476)."""
    return mask_BT / mask_BT.sum()


def sequence_mean(mask_BT: Tensor) -> Tensor:
    """Weights (B, T) under which a sum is the mean over sequences of each one's mean: mask / |y_i| / B; each needs a token."""
    return mask_BT / mask_BT.sum(-1, keepdim=True) / len(mask_BT)


REDUCTIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean}
