"""Separate actor and critic networks whose parameters are one flat float32 vector: [actor | log_std | critic].

The vector is what updates optimize and checkpoints keep. Acting reads it through numpy views, because a call into torch for
one observation costs more than the network itself; learning reads it through ``unflatten``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Generator, Tensor

from rgpo.control.distributions import Categorical, Distribution, Gaussian
from rgpo.control.mlp import MLP
from rgpo.core.rollout import Array, Rollout
from rgpo.learning.flat_adam import select
from rgpo.learning.types import Batch, Minibatch, PolicyOutput, PolicyShift, Samples, State, View


@dataclass(kw_only=True)
class ControlRollout(Rollout):
    """T steps of E environments with D observation numbers and A action numbers."""

    observation: Array  # (T, E, D) float32, as the policy saw it
    action: Array  # (T, E, A) float32, or (T, E) int64; as drawn, before it is clipped for the environment


class Observations(NamedTuple):
    """Inputs of a forward pass of an actor-critic."""

    observation: Tensor  # (n, D)
    action: Tensor  # (n, A) or (n,)
    old: tuple[Tensor, ...]  # parameters of the old distribution, each (n, ...)

    @property
    def num_samples(self) -> int:
        return len(self.observation)


@dataclass(frozen=True)
class ControlBatch:
    """N samples of a rollout, computed in one forward pass."""

    view: Observations
    samples: Samples

    @property
    def num_kl(self) -> int:
        """The old distribution is known at every sample."""
        return self.view.num_samples

    def minibatches(self) -> list[Minibatch]:
        """All samples as one; updates draw minibatches of their own."""
        return [Minibatch(torch.arange(self.view.num_samples), [self.view])]

    def at(self, view: View) -> Samples:
        """All samples: there is one view."""
        assert view is self.view
        return self.samples

    def with_advantage(self, advantage: Tensor) -> ControlBatch:
        """The same samples with another advantage (N,)."""
        return replace(self, samples=self.samples._replace(advantage=advantage))


def tanh(x: Tensor) -> Tensor:
    """2/(1 + exp(-2x)) - 1, to 2e-7; torch's own takes four times as long."""
    return 2 * (2 * x).sigmoid() - 1


class ActorCritic:
    """pi(a|s) and V(s) over flat observations; `discrete` chooses categorical or diagonal Gaussian actions."""

    def __init__(self, mlp: MLP, observation_size: int, action_size: int, discrete: bool, generator: Generator) -> None:
        self.mlp = mlp
        self.discrete = discrete
        self.action_size = action_size
        self.observation_size = observation_size
        actor = (observation_size, *mlp.hidden_sizes, action_size)
        critic = (observation_size, *mlp.hidden_sizes, 1)
        self.actor_shapes = [s for i, o in pairwise(actor) for s in ((i, o), (o,))]
        self.critic_shapes = [s for i, o in pairwise(critic) for s in ((i, o), (o,))]
        if not discrete:
            self.actor_shapes.append((action_size,))
        self.shapes = self.actor_shapes + self.critic_shapes
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.num_actor_parameters = sum(math.prod(shape) for shape in self.actor_shapes)
        self.flat: Tensor = torch.empty(sum(self.sizes))
        self._initialize(generator)
        self._tensors = self.unflatten(self.flat)
        views = [t.numpy() for t in self._tensors]
        self._actor, self._critic = views[: len(actor) * 2 - 2], views[len(self.actor_shapes) :]
        self._act: Callable[..., Array] = np.tanh if mlp.activation == "tanh" else partial(np.maximum, 0.0)

    def __repr__(self) -> str:
        """All that the networks' code depends on: compiled code is kept by it."""
        return f"ActorCritic({self.mlp}, {self.observation_size}, {self.action_size}, {self.discrete})"

    def _initialize(self, generator: Generator) -> None:
        tensors = self.unflatten(self.flat)
        last_policy_layer = 2 * len(self.mlp.hidden_sizes)
        gains = {last_policy_layer: self.mlp.policy_gain, len(tensors) - 2: self.mlp.value_gain}
        width = 1  # inputs of the present layer
        for i, tensor in enumerate(tensors):
            width = tensor.shape[0] if tensor.dim() == 2 else width
            if not self.mlp.orthogonal_init:
                tensor.uniform_(-1, 1, generator=generator).div_(math.sqrt(width))
            elif tensor.dim() == 2:
                gain = gains.get(i, math.sqrt(2))
                tensor.copy_(torch.nn.init.orthogonal_(torch.empty_like(tensor.T), gain, generator=generator).T)
            else:
                tensor.zero_()
        if not self.discrete:
            tensors[len(self.actor_shapes) - 1].fill_(self.mlp.log_std_init)

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Views of flat (P,) as weights (in, out), biases (out,) and, for Gaussians, log_std (A,)."""
        return [part.view(shape) for part, shape in zip(torch.split(flat, self.sizes), self.shapes, strict=True)]

    def parameters(self) -> list[Tensor]:
        """The flat vector alone."""
        return [self.flat]

    @property
    def critic(self) -> ActorCritic:
        """The value function is part of the same vector."""
        return self

    def forward(
        self, view: View, *, flat: Tensor | None = None, kl: bool = False, entropy: bool = True, value: bool = True
    ) -> PolicyOutput:
        """log pi(a|s), and the entropy, V(s) and exact KL(old || new) that are needed, (n,) each, at the parameters flat (P,)."""
        assert isinstance(view, Observations)
        tensors = self.unflatten(self.flat if flat is None else flat)
        count = len(self.actor_shapes)
        new = self._policy(tensors[:count], view.observation)
        return PolicyOutput(
            logp=new.log_prob(view.action),
            entropy=new.entropy() if entropy else None,
            value=self._network(tensors[count:], view.observation).squeeze(-1) if value else None,
            kl_old=new.kl_from(view.old) if kl else None,
        )

    def distribution(self, flat: Tensor, observation: Tensor) -> Distribution:
        """pi(.|observation) alone."""
        return self._policy(self.unflatten(flat)[: len(self.actor_shapes)], observation)

    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """V (n,) of observations (n, D) alone."""
        return self._network(self.unflatten(flat)[len(self.actor_shapes) :], features).squeeze(-1)

    def features(self, batch: Batch) -> Tensor:
        """The observations (N, D)."""
        assert isinstance(batch, ControlBatch)
        return batch.view.observation

    def _policy(self, tensors: list[Tensor], observation: Tensor) -> Distribution:
        output = self._network(tensors if self.discrete else tensors[:-1], observation)
        if self.discrete:
            return Categorical(output.log_softmax(-1))
        return Gaussian(output, torch.broadcast_to(tensors[-1], output.shape))

    def _network(self, tensors: list[Tensor], x: Tensor) -> Tensor:
        for i in range(0, len(tensors) - 2, 2):
            x = x @ tensors[i] + tensors[i + 1]
            x = tanh(x) if self.mlp.activation == "tanh" else x.relu()
        return (tensors[-2].T @ x.T).T + tensors[-1]  # few columns: torch's BLAS takes half the time on the transposes

    def state_dict(self) -> State:
        """The parameters (P,)."""
        return {"flat": self.flat.clone()}

    def load_state_dict(self, state: State) -> None:
        """Copy the parameters in place, so that acting sees them."""
        self.flat.copy_(cast(Tensor, state["flat"]))

    def act(self, observation: Array, noise: Array) -> Array:
        """Draw actions for observation (E, D) float32 with noise (E, A) of ``draw_noise``; none of it gives the mode.

        Returns (E, A) float32 or (E,) int64.
        """
        action = self.mode_output(observation)
        action += noise
        choice: Array = action.argmax(-1) if self.discrete else action
        return choice

    def mode_output(self, observation: Array) -> Array:
        """Logits or Gaussian means (N, A) for observation (N, D), in numpy."""
        return self._evaluate(self._actor, observation)

    def values(self, observation: Array) -> Array:
        """V (N,) of observation (N, D), in numpy."""
        return self._evaluate(self._critic, observation).ravel()

    def _evaluate(self, layers: list[Array], x: Array) -> Array:
        for i in range(0, len(layers), 2):
            x = x.dot(layers[i])  # dot is half the time of @ on one row
            x += layers[i + 1]
            if i + 2 < len(layers):
                self._act(x, out=x)
        return x

    def draw_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Noise (*shape, A) float32 that ``act`` adds to ``mode_output``: Gumbel, or std times Gaussian."""
        size = (*shape, self.action_size)
        if self.discrete:
            return rng.gumbel(size=size).astype(np.float32)
        std = self._tensors[len(self.actor_shapes) - 1].exp().numpy()
        noise: Array = std * rng.standard_normal(size).astype(np.float32)
        return noise

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> ControlBatch:
        """Flatten a rollout (T, E) to N samples.

        The old log-probabilities are recomputed by the forward pass that training uses, so that the ratio starts at 1.
        """
        assert isinstance(rollout, ControlRollout)
        observation = torch.from_numpy(rollout.observation.reshape(-1, self.observation_size))
        action = torch.from_numpy(rollout.action.reshape(-1, *rollout.action.shape[2:]))
        with torch.no_grad():
            old = self.distribution(self.flat, observation)
            logp_old = old.log_prob(action)
        a, target, value = (torch.from_numpy(x.reshape(-1).astype(np.float32)) for x in (advantage, value_target, rollout.value))
        view = Observations(observation, action, tuple(x.contiguous() for x in old))
        return ControlBatch(view, Samples(logp_old, None, a, target, value))

    def subset(self, batch: Batch, index: Array) -> ControlBatch:
        """The samples index (b,) as a batch."""
        assert isinstance(batch, ControlBatch)
        return ControlBatch(*select((batch.view, batch.samples), torch.from_numpy(index)))

    @torch.no_grad()
    def measure_shift(self, batch: Batch) -> PolicyShift:
        """The present parameters compared with those that collected the batch."""
        assert isinstance(batch, ControlBatch)
        out = self.forward(batch.view, kl=True, value=False)
        assert out.kl_old is not None and out.entropy is not None
        return PolicyShift(out.logp - batch.samples.logp_old, out.kl_old, out.entropy)
