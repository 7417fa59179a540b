"""Helpers for tensors that may be sharded over processes (torch's DTensor); all of them accept plain tensors, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from rgpo import distributed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(x: Tensor) -> TypeGuard[DTensor]:
    """True if this process holds only a part of x."""
    if distributed.world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def full(x: Tensor) -> Tensor:
    """All of x, in every process."""
    return x.full_tensor() if is_sharded(x) else x


def for_file(x: Tensor) -> Tensor:
    """All of x on the CPU, for a checkpoint; of a sharded tensor, only the first process keeps a copy (others: empty)."""
    whole = full(x.detach())
    return whole[:0].cpu() if is_sharded(x) and distributed.rank() else whole.cpu().clone()


def fit(x: Tensor, like: Tensor) -> Tensor:
    """This process's part of x, placed and sharded like `like`."""
    if not is_sharded(like):
        return x.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def by_kind(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Separate plain and sharded tensors, because no operation takes both; without empty lists."""
    both = [[p for p in parameters if is_sharded(p) == sharded] for sharded in (False, True)]
    return [part for part in both if part]


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the gradients over processes, except those that FSDP has already summed."""
    distributed.all_reduce_in_place(p.grad for p in parameters if p.grad is not None and not is_sharded(p))


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most limit; returns the norm before."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    parts = by_kind([p for p in parameters if p.grad is not None])
    norms = [full(get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
    norm = get_total_norm(norms)
    for part in parts:
        clip_grads_with_norm_(part, limit, norm)
    return norm


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All tensors, unsharded, as one vector."""
    return torch.cat([full(x).flatten() for x in tensors])
