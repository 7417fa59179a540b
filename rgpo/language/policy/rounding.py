"""Accepted differences of two ways of computing a number, and calls of foreign forward passes; torch is imported on use only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ROUNDING = 4.0  # accepted difference: this many times that of embeddings changed in their last bit
UNITS = 1.0  # and this many units in the last place of the result
LEAST = 1e-4  # accepted in any case
# raised by a forward pass that cannot take what it is given
UNUSABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def accepted(module: nn.Module, **inputs: object) -> dict[str, object]:
    """The inputs that are among the named parameters of the module's forward."""
    names = _parameters(getattr(module.forward, "__func__", module.forward))
    return {name: value for name, value in inputs.items() if name in names}


@lru_cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)  # 30 us, once per token if it were not cached


@contextmanager
def perturbed_embeddings(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Change a model's input embeddings by one unit in the last place of dtype, up and down: the size of a rounding."""
    import torch

    eps = torch.finfo(dtype).eps

    def perturb(_: object, __: object, out: Tensor) -> Tensor:
        sign = 1 - 2 * (torch.arange(out.numel(), device=out.device).view(out.shape) * 7 // 4 % 2)
        return out * (1 + eps * sign).to(out.dtype)

    handle = model.get_input_embeddings().register_forward_hook(perturb)
    try:
        yield
    finally:
        handle.remove()
