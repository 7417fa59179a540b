"""Separate actor and critic networks of linear layers, evaluated in numpy when acting and in torch when learning.

For a single observation, calling torch costs more than the network itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor

from rgpo.control.actions import Head
from rgpo.control.mlp import MLP
from rgpo.control.policy import ControlPolicy, Evaluation
from rgpo.core.rollout import Array


def tanh(x: Tensor) -> Tensor:
    """2/(1 + exp(-2x)) - 1, accurate to 2e-7; torch's own tanh takes four times as long."""
    return 2 * (2 * x).sigmoid() - 1


class ActorCritic(ControlPolicy):
    """Two MLPs over flat observations; heads define the distribution of actions."""

    def __init__(self, mlp: MLP, observation_size: int, heads: tuple[Head, ...], generator: Generator) -> None:
        self.mlp, self.heads = mlp, heads
        self.observation_size = observation_size
        actor = (observation_size, *mlp.hidden_sizes, self.output_size)
        critic = (observation_size, *mlp.hidden_sizes, 1)
        self.actor_shapes = [s for i, o in pairwise(actor) for s in ((i, o), (o,))]
        self.critic_shapes = [s for i, o in pairwise(critic) for s in ((i, o), (o,))]
        self.num_layers = len(self.actor_shapes)  # tensors of the actor without log_std
        if self.num_gaussian:
            self.actor_shapes.append((self.num_gaussian,))
        self.shapes = [*self.actor_shapes, *self.critic_shapes]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.num_actor_parameters = sum(math.prod(shape) for shape in self.actor_shapes)
        self.flat: Tensor = torch.empty(sum(self.sizes))
        self._initialize(generator)
        tensors = self.unflatten(self.flat)
        self.log_std = tensors[self.num_layers] if self.num_gaussian else None
        views = [t.numpy() for t in tensors]
        self.actor_layers, self._critic = views[: self.num_layers], views[len(self.actor_shapes) :]  # weight, bias, weight, ...
        self._act: Callable[..., Array] = np.tanh if mlp.activation == "tanh" else partial(np.maximum, 0.0)

    def __repr__(self) -> str:
        """Everything that the networks' code depends on; compiled code is keyed by it."""
        return f"ActorCritic({self.mlp}, {self.observation_size}, {self.heads})"

    def _initialize(self, generator: Generator) -> None:
        tensors = self.unflatten(self.flat)
        last_policy_layer = 2 * len(self.mlp.hidden_sizes)
        gains = {last_policy_layer: self.mlp.policy_gain, len(tensors) - 2: self.mlp.value_gain}
        width = 1  # inputs of the current layer
        for i, tensor in enumerate(tensors):
            width = tensor.shape[0] if tensor.dim() == 2 else width
            if not self.mlp.orthogonal_init:
                tensor.uniform_(-1, 1, generator=generator).div_(math.sqrt(width))
            elif tensor.dim() == 2:
                gain = gains.get(i, math.sqrt(2))
                tensor.copy_(torch.nn.init.orthogonal_(torch.empty_like(tensor.T), gain, generator=generator).T)
            else:
                tensor.zero_()
        if self.num_gaussian:
            tensors[len(self.actor_shapes) - 1].fill_(self.mlp.log_std_init)

    def evaluate(self, flat: Tensor, observation: Tensor, *, value: bool) -> Evaluation:
        """Both networks at the parameters flat (P,)."""
        tensors, x = self.unflatten(flat), observation.float()
        count = len(self.actor_shapes)
        return Evaluation(
            self._network(tensors[: self.num_layers], x),
            tensors[self.num_layers] if self.num_gaussian else None,
            self._network(tensors[count:], x).squeeze(-1) if value else None,
        )

    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """V (n,) of observations (n, D), without the actor."""
        return self._network(self.unflatten(flat)[len(self.actor_shapes) :], features.float()).squeeze(-1)

    def _network(self, tensors: list[Tensor], x: Tensor) -> Tensor:
        for i in range(0, len(tensors) - 2, 2):
            x = x @ tensors[i] + tensors[i + 1]
            x = tanh(x) if self.mlp.activation == "tanh" else x.relu()
        return (tensors[-2].T @ x.T).T + tensors[-1]  # with few columns, the transposes take torch's BLAS half the time

    def mode_output(self, observation: Array) -> Array:
        """Outputs (N, O) for observation (N, D), in numpy."""
        return self._evaluate(self.actor_layers, observation)

    def values(self, observation: Array) -> Array:
        """V (N,) of observation (N, D), in numpy."""
        return self._evaluate(self._critic, observation).ravel()

    def _evaluate(self, layers: list[Array], x: Array) -> Array:
        x = x.astype(np.float32, copy=False)  # pixels
        for i in range(0, len(layers), 2):
            x = x.dot(layers[i])  # on one row, dot takes half the time of @
            x += layers[i + 1]
            if i + 2 < len(layers):
                self._act(x, out=x)
        return x
