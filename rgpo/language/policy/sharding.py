"""FSDP2 for a causal language model: decoder layers are divided over processes, embeddings and head are whole in each.

The head stays whole because log-probabilities read its weight by blocks. "Fully sharded": Rajbhandari et al. 2020 (ZeRO), as in
torch.distributed.fsdp.
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
    """Divide the decoder's layers in place and return them. Gradients are summed over the processes, not averaged.

    The prefetch order of the backward pass is set by hand: torch would infer it from earlier forward passes, and processes
    make different numbers of them when they generate.

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
        layer.set_force_sum_reduction_for_comms(True)  # the only reduction that gloo has
    return sharded


@contextmanager
def gathered(layers: Sequence[FSDPModule]) -> Iterator[None]:
    """Hold every layer whole in every process, so that each can run the model as often as it needs."""
    for layer in layers:
        layer.set_reshard_after_forward(False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
            layer.reshard()
