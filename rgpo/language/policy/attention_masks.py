"""Additive attention masks: 0 where a key is visible, the dtype's lowest number where it is not.

Legend: U packed rows of W tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PACKED = "rgpo_packed"  # name of our SDPA for packed rows (rgpo.language.policy.packed_attention)
ADDITIVE = ("sdpa", "eager", PACKED)  # implementations that accept a precomputed mask (b, 1, queries, keys)


def accepts_custom_masks(config: PreTrainedConfig) -> bool:
    """True if every layer of the model accepts arbitrary masks and caches all earlier tokens."""
    config = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    return config._attn_implementation in ADDITIVE and all(type(layer) is DynamicLayer for layer in layers)


def supports_packing(config: PreTrainedConfig) -> bool:
    """True if completions can share a row: all layers use SDPA, and positions depend only on position ids."""
    text = config.get_text_config(decoder=True)
    return accepts_custom_masks(config) and text._attn_implementation != "eager" and bool(text.to_dict().get("rope_parameters"))


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible is True, elsewhere the lowest number of dtype."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def segment_visibility(segment_UW: Tensor) -> Tensor:
    """Visibility (U, W, W) bool, query x key, for segments: 0 is a prompt, 1, 2, ... are its completions, -1 is padding.

    A token sees itself, the prompt, and earlier tokens of its own segment. Padding sees padding, because a fully masked row would
    become NaN and spread through the values.
    """
    query, key = segment_UW[:, :, None], segment_UW[:, None, :]
    width = segment_UW.shape[1]
    before = torch.ones(width, width, dtype=torch.bool, device=segment_UW.device).tril()
    return before & ((key == 0) | (key == query))
