"""A policy around any torch module that maps observations to outputs and values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rgpo.control.actions import Head
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.cnn import NatureCNN, OwnNetwork
from rgpo.control.mlp import MLP
from rgpo.control.policy import ControlPolicy, Evaluation
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, blamed, described
from rgpo.learning.types import State

LOG_STD = ".log_std"  # its name in ``names``; no parameter of a module has a name with a leading dot
ROWS = 512  # observations per forward pass of ``values``


class ModulePolicy(ControlPolicy):
    """module(observation (n, *shape) float32) -> outputs (n, O), values (n,) or (n, 1), in eval mode.

    The flat vector holds the parameters that the outputs depend on, then log_std, then the critic's own. Parameters shared by
    actor and critic count as the actor's; fitting the critic separately does not change them.
    """

    compilable = False

    def __init__(self, module: nn.Module, shape: Sequence[int], heads: tuple[Head, ...], log_std_init: float) -> None:
        self.module, self.shape, self.heads = module.eval(), tuple(shape), heads
        self.observation_size = math.prod(shape)
        named = {name: x for name, x in module.named_parameters() if x.requires_grad}  # the others are frozen
        used = self._used_by_outputs(named)
        own = [name for name in named if name not in used]
        self.names = [*used, *([LOG_STD] if self.num_gaussian else []), *own]
        tensors = {name: x.detach().float() for name, x in named.items()}
        tensors[LOG_STD] = torch.full((self.num_gaussian,), log_std_init)
        self.shapes = [tuple(tensors[name].shape) for name in self.names]
        self.sizes = [math.prod(x) for x in self.shapes]
        self.num_actor_parameters = sum(tensors[name].numel() for name in self.names[: len(self.names) - len(own)])
        self.flat = torch.cat([tensors[name].reshape(-1) for name in self.names])
        views = dict(zip(self.names, self.unflatten(self.flat), strict=True))
        self.log_std = views.pop(LOG_STD, None)
        for name, parameter in named.items():
            parameter.requires_grad_(False).data = views[name]  # views of flat: updates change the acting module

    def __repr__(self) -> str:
        return f"ModulePolicy({self.module}, {self.shape}, {self.heads})"

    def state_dict(self) -> State:
        """The parameters (P,), and the rest of the module's state: buffers, and parameters that are not trained."""
        buffers = {name: x.clone() for name, x in self.module.state_dict().items() if name not in self.names}
        return super().state_dict() | ({"buffers": buffers} if buffers else {})

    def load_state_dict(self, state: State) -> None:
        """Copy everything in place, so that the acting module is updated, too."""
        super().load_state_dict(state)
        self.module.load_state_dict(cast(Mapping[str, Tensor], state.get("buffers", {})), strict=False)

    def _used_by_outputs(self, named: dict[str, nn.Parameter]) -> list[str]:
        output, _ = self.module(torch.zeros(2, *self.shape))
        gradients = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
        return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]

    def evaluate(self, flat: Tensor, observation: Tensor, *, value: bool) -> Evaluation:
        """The module at the parameters flat (P,)."""
        tensors = dict(zip(self.names, self.unflatten(flat), strict=True))
        log_std = tensors.pop(LOG_STD, None)
        output, values = functional_call(self.module, tensors, (self._shaped(observation),))
        return Evaluation(output, log_std, values.reshape(-1) if value else None)

    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """V (n,) of observations (n, D), with gradients for the critic's own parameters only."""
        count = self.num_actor_parameters
        values = self.evaluate(torch.cat([flat[:count].detach(), flat[count:]]), features, value=True).value
        assert values is not None
        return values

    def _shaped(self, observation: Tensor) -> Tensor:
        return observation.to(torch.float32, copy=True).reshape(-1, *self.shape)  # a copy: a module may change its input

    @torch.no_grad()
    def mode_output(self, observation: Array) -> Array:
        """Outputs (N, O) for observation (N, D)."""
        output, _ = self.module(self._shaped(torch.from_numpy(np.ascontiguousarray(observation))))
        found: Array = output.numpy()
        return found

    @torch.no_grad()
    def values(self, observation: Array) -> Array:
        """V (N,) of observation (N, D)."""
        parts = torch.split(torch.from_numpy(np.ascontiguousarray(observation)), ROWS)
        found: Array = torch.cat([self.module(self._shaped(part))[1].reshape(-1) for part in parts]).numpy()
        return found


def make_policy(
    design: MLP | NatureCNN | OwnNetwork, shape: Sequence[int], heads: tuple[Head, ...], *, pixels: bool, seed: int
) -> ControlPolicy:
    """A fresh policy for observations of a shape; its initial parameters depend only on the seed.

    Raises: ConfigError for observations that the network cannot read, or outputs of other shapes.
    """
    if isinstance(design, MLP):
        return ActorCritic(design, math.prod(shape), heads, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = design.make(shape, pixels, sum(head.size for head in heads))
    return ModulePolicy(module, shape, heads, design.log_std_init)


def refuse_failing(policy: ControlPolicy, design: OwnNetwork, observation: Array, normalized: bool) -> None:
    """Raises: ConfigError if a user's network raises on observations (N, D)."""
    when = f"with task.normalize_observation={str(normalized).lower()}; it must take what the environment returns."
    about = f"task.policy: {design!r} raised on the first observations"
    with blamed(lambda error: ConfigError(f"{about} ({described(error)}), {when}")):
        policy.mode_output(observation)
