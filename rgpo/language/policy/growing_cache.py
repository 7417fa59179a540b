"""A key-value cache that doubles its memory when full; transformers' own copies all tokens for each new one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class GrowingLayer(DynamicLayer):
    """Keys and values (b, heads, tokens, size) of a layer with full attention, stored as views of larger arrays."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append tokens and return all keys and values."""
        new = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.arrays = [x[:, :, :0] for x in new]
            self.keys, self.values = self.arrays
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self.arrays[0].shape[2]:
            self.arrays = [
                torch.cat([x[:, :, :start], x.new_empty(*x.shape[:2], 2 * end - start, x.shape[3])], 2) for x in self.arrays
            ]
        for array, x in zip(self.arrays, new, strict=True):
            array[:, :, start:end] = x
        self.keys, self.values = (x[:, :, :end] for x in self.arrays)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the given rows."""
        if self.get_seq_length() == 0:
            return
        length = self.keys.shape[2]
        self.arrays = [x.index_select(0, beam_idx) for x in self.arrays]
        self.keys, self.values = (x[:, :, :length] for x in self.arrays)


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers with a sliding window or a recurrent state use transformers' own cache."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
