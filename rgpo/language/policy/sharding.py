"""FSDP2 for a causal language model: decoder layers are sharded over processes; embeddings and head are replicated.

The head is not sharded, because log-probabilities read its weight in blocks. Fully sharded data parallelism follows ZeRO
(Rajbhandari et al. 2020), as implemented in torch.distributed.fsdp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rgpo import distributed
from rgpo.errors import require

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.fsdp import FSDPModule


def shard(decoder: nn.Module) -> list[FSDPModule]:
    """Shard the decoder's layers in place and return them; gradients are summed over the processes, not averaged.

    The prefetch order of the backward pass is set explicitly: torch would infer it from earlier forward passes, whose number
    differs between processes during generation.

    Raises: ConfigError if the decoder has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers: list[nn.Module] = list(getattr(decoder, "layers", []))
    require(bool(layers), "task.parallel", "fsdp", f"finds no list of layers in a {type(decoder).__name__}; use ddp.")
    mesh = init_device_mesh(next(decoder.parameters()).device.type, (distributed.world_size(),))
    inside = {p for layer in layers for p in layer.parameters()}
    sharded = [fully_shard(layer, mesh=mesh, reshard_after_forward=True) for layer in layers]
    fully_shard(decoder, mesh=mesh, reshard_after_forward=True, ignored_params={*decoder.parameters()} - inside)
    for i, layer in enumerate(sharded):
        layer.set_modules_to_backward_prefetch([sharded[max(i - 1, 0)]])
        layer.set_gradient_divide_factor(1.0)
        layer.set_force_sum_reduction_for_comms(True)  # the only reduction that gloo supports
    return sharded


@contextmanager
def gathered(layers: Sequence[FSDPModule]) -> Iterator[None]:
    """Unshard all layers in every process, so that each can run the model any number of times."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
