"""FSDP2 for a causal language model: its decoder layers divided over the processes, embeddings and head whole in each.

The head stays whole because log-probabilities read its weight by blocks. Without sharding every function here sees plain
tensors and leaves them as they are. "Fully sharded" is Rajbhandari et al. 2020 (ZeRO) as torch.distributed.fsdp writes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor

from rgpo import distributed
from rgpo.errors import require

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(decoder: Any) -> list[Any]:
    """Divide the decoder's layers, in place; the layers. Gradients are summed over the processes, not averaged. ConfigError.

    What to fetch next in the backward pass is set by hand: torch would infer it from earlier forward passes, of which
    processes make different numbers when they generate.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = list(getattr(decoder, "layers", []))
    require(bool(layers), "task.parallel", "fsdp", f"finds no list of layers in a {type(decoder).__name__}, use ddp.")
    mesh = init_device_mesh(next(decoder.parameters()).device.type, (distributed.world_size(),))
    inside = {p for layer in layers for p in layer.parameters()}
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params={*decoder.parameters()} - inside)
    for i, layer in enumerate(layers):
        layer.set_modules_to_backward_prefetch([layers[max(i - 1, 0)]])
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return layers


@contextmanager
def gathered(layers: Sequence[Any]) -> Iterator[None]:
    """Every layer whole in every process meanwhile, so that each may run the model as often as it likes."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()


def is_sharded(x: Tensor) -> TypeGuard[DTensor]:
    """Whether this process holds only a part of x."""
    if distributed.world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(x, DTensor)


def full(x: Tensor) -> Tensor:
    """All of x, in every process."""
    return x.full_tensor() if is_sharded(x) else x


def for_file(x: Tensor) -> Tensor:
    """All of x on the CPU as a checkpoint holds it; of what was sharded only the first process keeps a copy."""
    whole = full(x.detach())
    return whole[:0].cpu() if is_sharded(x) and distributed.rank() else whole.cpu().clone()


def fit(x: Tensor, like: Tensor) -> Tensor:
    """What this process holds of x, on the device of `like` and divided as it is."""
    if not is_sharded(like):
        return x.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    return distribute_tensor(x.to(like.device), placed.device_mesh, placed.placements, src_data_rank=None)


def kinds(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The whole ones and the sharded ones, which no operation takes together; no empty list."""
    both = [[p for p in parameters if is_sharded(p) == sharded] for sharded in (False, True)]
    return [part for part in both if part]


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Add up over the processes what FSDP has not added up already."""
    distributed.add_up(p.grad for p in parameters if p.grad is not None and not is_sharded(p))


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their norm is at most limit; the norm before."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    parts = kinds([p for p in parameters if p.grad is not None])
    norms = [full(get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
    norm = get_total_norm(norms)
    for part in parts:
        clip_grads_with_norm_(part, limit, norm)
    return norm
