"""What the tests of updates share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rgpo.control.actor_critic import ActorCritic
from rgpo.core import gates
from rgpo.core.rollout import Batch
from rgpo.core.surrogate import Detached, surrogate

Make = Callable[..., ActorCritic]
MakeBatch = Callable[..., Batch]
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["gaussian", "categorical"])


def objective(gate: Any) -> Any:
    return partial(surrogate, gate=gate, ref_gate=gates.Open(), dual=Detached())


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
