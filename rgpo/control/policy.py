"""Policies of control tasks: their rollouts and batches, and the base class of policies over flat parameters.

Shapes: T steps of E environments, N samples, D observation numbers, A action numbers, O outputs of the actor, P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor

from rgpo.control.actions import Head, choose, draw_noise
from rgpo.control.distributions import Distribution, make_distribution
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import ConfigError
from rgpo.learning.flat_adam import select
from rgpo.learning.samples import PolicyOutput, PolicyShift, Samples
from rgpo.learning.types import Batch, Minibatch, State, View


@dataclass(kw_only=True)
class ControlRollout(Rollout):
    """T steps of E environments with D observation numbers and A action numbers."""

    observation: Array  # (T, E, D) float32, as the policy saw it; uint8 for pixels that no normalizer saw
    action: Array  # (T, E, A) float32, or (T, E) int64 of a single categorical; as drawn, before conversion for the environment
    old: Old | None = None  # the policy in the denominator of the ratio; None: the current one


class Old(NamedTuple):
    """The policy in the denominator of a rollout's ratios, at its N samples."""

    logp: Tensor  # (N,) nats
    parameters: tuple[Tensor, ...]  # of the distributions, each (N, ...)
    correction: Tensor | None = None  # (N,) multiplies advantages: ratio of this policy to the one that drew the actions


class Evaluation(NamedTuple):
    """Outputs of a policy's networks at n observations."""

    output: Tensor  # (n, O) of the actor
    log_std: Tensor | None  # (number of Gaussians,), the same in every state
    value: Tensor | None  # (n,)


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
        """N: the old distribution is known at every sample."""
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


class ControlPolicy(ABC):
    """pi(a|s) and V(s) over flat observations, as a pure function of one float32 vector: actor, log_std, then the critic's own.

    Updates optimize this vector and checkpoints store it; acting uses it without autograd.
    """

    flat: Tensor  # (P,)
    shapes: list[tuple[int, ...]]  # of the parameters in flat
    sizes: list[int]
    num_actor_parameters: int
    observation_size: int
    heads: tuple[Head, ...]
    log_std: Tensor | None  # of the Gaussian numbers of an action, a view of flat; None if there are none

    @property
    def output_size(self) -> int:
        """Number of outputs of the actor, O."""
        return sum(head.size for head in self.heads)

    @property
    def action_size(self) -> int:
        """Number of action numbers, A."""
        return sum(head.columns for head in self.heads)

    @property
    def num_gaussian(self) -> int:
        """Number of Gaussian action numbers, each of which has a log_std."""
        return sum(head.size for head in self.heads if head.kind == "gaussian")

    @property
    def discrete(self) -> bool:
        """True if an action is a single index."""
        return len(self.heads) == 1 and self.heads[0].kind == "categorical"

    @abstractmethod
    def evaluate(self, flat: Tensor, observation: Tensor, *, value: bool) -> Evaluation:
        """Evaluate the networks at the parameters flat (P,) and observation (n, D); V only if value is true."""

    @abstractmethod
    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """V (n,) of ``features`` (n, D), with gradients for the critic's own parameters only."""

    @abstractmethod
    def mode_output(self, observation: Array) -> Array:
        """Outputs (N, O) for observation (N, D), without noise."""

    @abstractmethod
    def values(self, observation: Array) -> Array:
        """V (N,) of observation (N, D)."""

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Views of flat (P,) as its parameters."""
        return [part.view(shape) for part, shape in zip(torch.split(flat, self.sizes), self.shapes, strict=True)]

    def parameters(self) -> list[Tensor]:
        """The flat vector, as the only tensor."""
        return [self.flat]

    @property
    def critic(self) -> Self:
        """This policy, whose vector includes the value function."""
        return self

    def features(self, batch: Batch) -> Tensor:
        """The observations (N, D)."""
        assert isinstance(batch, ControlBatch)
        return batch.view.observation

    def forward(
        self, view: View, *, flat: Tensor | None = None, kl: bool = False, entropy: bool = True, value: bool = True
    ) -> PolicyOutput:
        """log pi(a|s), and entropy, V(s) and exact KL(old || new) if selected, (n,) each, at the parameters flat (P,)."""
        assert isinstance(view, Observations)
        flat = self.flat if flat is None else flat
        output, log_std, values = self.evaluate(flat, view.observation, value=value)
        new = make_distribution(self.heads, output, log_std)
        return PolicyOutput(
            logp=new.log_prob(view.action),
            entropy=new.entropy() if entropy else None,
            value=values,
            kl_old=new.kl_from(view.old) if kl else None,
        )

    def distribution(self, flat: Tensor, observation: Tensor) -> Distribution:
        """pi(.|observation), without the value."""
        output, log_std, _ = self.evaluate(flat, observation, value=False)
        return make_distribution(self.heads, output, log_std)

    def state_dict(self) -> State:
        """The parameters (P,)."""
        return {"flat": self.flat.clone()}

    def load_state_dict(self, state: State) -> None:
        """Copy the parameters in place, so that the acting policy is updated, too.

        Raises: ConfigError if the number of parameters differs.
        """
        saved = cast(Tensor, state["flat"])
        have = f"checkpoint: its policy has {len(saved):,} parameters, this one {len(self.flat):,}"
        if saved.shape != self.flat.shape:
            remedy = "restore the environment and the network with which it was trained, or start anew with force=true"
            raise ConfigError(f"{have}; {remedy}.")
        self.flat.copy_(saved)

    def act(self, observation: Array, noise: Array) -> Array:
        """Sample actions for observation (E, D) with noise (E, O) from ``draw_noise``; zero noise gives the mode.

        Returns (E, A) float32, or (E,) int64 of a single categorical.
        """
        output = self.mode_output(observation)
        output += noise
        return choose(self.heads, output)

    def empty_actions(self, shape: tuple[int, ...]) -> Array:
        """Memory for actions as ``act`` returns them, (*shape, A) float32, or (*shape,) int64 of a single categorical."""
        return np.empty(shape, np.int64) if self.discrete else np.empty((*shape, self.action_size), np.float32)

    def draw_noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        """Noise (*shape, O) float32 that ``act`` adds to ``mode_output``."""
        return draw_noise(self.heads, shape, None if self.log_std is None else self.log_std.exp().numpy(), rng)

    @torch.no_grad()
    def old(self, rollout: ControlRollout) -> Old:
        """The current policy at a rollout's samples, by the forward pass used in training, so that the ratio starts at 1."""
        observation, action = self._inputs(rollout)
        found = self.distribution(self.flat, observation)
        return Old(found.log_prob(action), tuple(x.contiguous() for x in found))

    def _inputs(self, rollout: ControlRollout) -> tuple[Tensor, Tensor]:
        """Observations (N, D) and actions (N, A) or (N,) of a rollout (T, E)."""
        observation = torch.from_numpy(rollout.observation.reshape(-1, self.observation_size))
        return observation, torch.from_numpy(rollout.action.reshape(-1, *rollout.action.shape[2:]))

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> ControlBatch:
        """Flatten a rollout (T, E) to N samples."""
        assert isinstance(rollout, ControlRollout)
        old = rollout.old or self.old(rollout)
        a, target, value = (torch.from_numpy(x.reshape(-1).astype(np.float32)) for x in (advantage, value_target, rollout.value))
        view = Observations(*self._inputs(rollout), old.parameters)
        return ControlBatch(view, Samples(old.logp, None, a, target, value, correction=old.correction))

    def values_around(self, seen: Array, last: Array, finals: Mapping[tuple[int, int], Array]) -> tuple[Array, Array]:
        """V of every observation (T, E, D) and of every true next observation, (T, E) float64 each, in one forward pass.

        last (E, D) follows the rollout; finals: the last observations of the episodes that ended, by step and environment.
        """
        rows = [seen.reshape(-1, seen.shape[-1]), last, *(final[None] for final in finals.values())]
        flat = self.values(np.concatenate(rows)).astype(np.float64)
        steps, num_envs = seen.shape[0] + 1, seen.shape[1]
        table = flat[: steps * num_envs].reshape(steps, num_envs)
        next_value = table[1:].copy()
        for place, final_value in zip(finals, flat[steps * num_envs :], strict=True):
            next_value[place] = final_value
        return table[:-1].copy(), next_value

    def subset(self, batch: Batch, index: Array) -> ControlBatch:
        """The samples at index (b,) as a batch."""
        assert isinstance(batch, ControlBatch)
        return ControlBatch(*select((batch.view, batch.samples), torch.from_numpy(index)))

    @torch.no_grad()
    def measure_shift(self, batch: Batch) -> PolicyShift:
        """The current policy compared with the old one of the batch."""
        assert isinstance(batch, ControlBatch)
        out = self.forward(batch.view, kl=True, value=False)
        assert out.kl_old is not None and out.entropy is not None
        return PolicyShift(out.logp - batch.samples.logp_old, out.kl_old, out.entropy)
