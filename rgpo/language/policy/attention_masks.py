"""Who attends to whom, as masks that are added to the attention's scores: 0 to see, the least number not to.

Names: U lines of W tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ADDITIVE = ("sdpa", "eager")  # attentions that take a ready mask (b, 1, queries, keys)


def takes_masks(config: Any) -> bool:
    """Whether a model of this config attends through any mask it is given, in every layer to all that went before."""
    return config._attn_implementation in ADDITIVE and all(type(x) is DynamicLayer for x in DynamicCache(config=config).layers)


def reads_lines(config: Any) -> bool:
    """Whether a prompt's completions can stand in one line: any mask is taken, and position ids alone say where a token is."""
    return takes_masks(config) and bool(config.to_dict().get("rope_parameters"))


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask of what is visible, True to see."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def earlier(segment_UW: Tensor) -> Tensor:
    """(U, W, W) bool: what a token sees of segments 0 (a prompt) and 1, 2, ... (its completions), -1 marking padding.

    Itself and, of what stands before it, the prompt and its own segment. Every token sees something: a row that is hidden
    throughout would become NaN and spread through the values.
    """
    query, key = segment_UW[:, :, None], segment_UW[:, None, :]
    width = segment_UW.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segment_UW.device).tril()
    return before & ((key == 0) | (key == query))
