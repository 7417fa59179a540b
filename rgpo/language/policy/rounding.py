"""Tolerances for two computations of the same number, and calls to other libraries' forward passes; torch is imported on use."""

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

ROUNDING = 4.0  # tolerance: this many times the effect of changing the embeddings' last bit
UNITS = 1.0  # plus this many units in the last place of the result
LEAST = 1e-4  # minimum tolerance
# raised by a forward pass that does not support its inputs
UNUSABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def accepted(module: nn.Module, **inputs: object) -> dict[str, object]:
    """The inputs that the module's forward accepts by name."""
    names = _parameters(getattr(module.forward, "__func__", module.forward))
    return {name: value for name, value in inputs.items() if name in names}


@lru_cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)  # cached: it takes 30 us, and is called for every token


@contextmanager
def perturbed_embeddings(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Perturb a model's input embeddings by one unit in the last place of dtype, up or down, as rounding would."""
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
