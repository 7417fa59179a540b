"""Networks of an ``Actor`` that numpy cannot evaluate: convolutions, or a user's module as an exported program."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rgpo.control.convolutions import Convolutions
from rgpo.control.description import Network
from rgpo.core.rollout import Array
from rgpo.learning.export import NoExport

PROGRAM = "network.pt2"


class TorchNetwork:
    """module(observation (n, *shape) float32) -> outputs (n, O), values (n,)."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self.module, self.shape = module, shape

    @torch.no_grad()
    def __call__(self, observation: Array) -> Array:
        """Outputs (N, O) of flat observations (N, D) float32."""
        output, _ = self.module(torch.from_numpy(np.ascontiguousarray(observation)).reshape(-1, *self.shape))
        found: Array = output.numpy()
        return found

    def save(self, folder: Path) -> None:
        """Write the module as a program that does not need the user's code.

        Raises: NoExport if torch.export cannot trace it.
        """
        try:
            example = (torch.zeros(2, *self.shape),)
            program = torch.export.export(self.module, example, dynamic_shapes=({0: torch.export.Dim("N")},))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "No complete tensor found in the group")  # weights that are views of one vector
                torch.export.save(program, folder / PROGRAM)
        except Exception as error:  # of torch, about the user's module
            why = f"torch.export cannot trace {type(self.module).__name__} ({type(error).__name__})"
            raise NoExport(f"{why}; the checkpoint alone holds the policy") from error


def load_program(folder: Path, shape: Sequence[int]) -> TorchNetwork:
    """The network that ``save`` wrote, for observations of a shape."""
    return TorchNetwork(torch.export.load(folder / PROGRAM).module(), tuple(shape))


def convolutions(network: Network, weights: Mapping[str, Array]) -> TorchNetwork:
    """The network of conf/policy/cnn.yaml with its weights."""
    channels, height, width = network["picture"]
    module = Convolutions(
        tuple(network["shape"]),
        (channels, height, width),
        network["action_size"],
        hidden_size=network["hidden_sizes"][0],
        policy_gain=1.0,
        value_gain=1.0,
        scale=network["scale"],
    )
    named = {name: torch.from_numpy(np.array(x)) for name, x in weights.items() if name != "log_std"}
    module.load_state_dict(named)
    return TorchNetwork(module.eval().requires_grad_(False), tuple(network["shape"]))
