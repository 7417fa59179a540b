"""Ratios of whole sequences, for gates that act on a completion instead of on its tokens. Names: B sequences, T tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sequence_log_ratio(log_ratio_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """d_i = sum_t mask_it d_it / sum_t mask_it, spread over the tokens (B, T): log of (pi_new(y_i)/pi_old(y_i))^(1/|y_i|).

    GSPO (arXiv 2507.18071), Eq. 7. Nats per token; 0 for a sequence without a token; what stands under mask 0 is never read.
    A gate of it, under `sequence_mean`, has the gradient -w(d_i) A_i grad log pi(y_i) / |y_i|.
    """
    total_B1 = log_ratio_BT.masked_fill(mask_BT == 0, 0.0).sum(-1, keepdim=True)
    return (total_B1 / mask_BT.sum(-1, keepdim=True).clamp(min=1)).expand_as(log_ratio_BT)
