"""What a task collects and what an update learns from.

Shapes: T steps, E environments, D observation size, A action size, N = T E samples in time-major order, M groups of b samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]


@dataclass
class Rollout:
    """T steps of E environments under the old policy; rewards are what the learner sees (normalised if the task says so)."""

    observation: Array  # (T, E, D) float32, as the policy saw it
    action: Array  # (T, E, A) float32, or (T, E) int64; what was drawn, not what was clipped for the environment
    reward: Array  # (T, E) float64
    terminated: Array  # (T, E) bool: the episode ended and its future is worth nothing
    done: Array  # (T, E) bool: terminated or truncated
    value: Array  # (T, E) float64, V of the observation
    next_value: Array  # (T, E) float64, V of the true next observation, before any reset
    metrics: dict[str, float]  # what the task measured while collecting
    mask: Array | None = None  # (T, E) bool, which steps are real; None: all of them
    group_size: int = 1  # consecutive environments that share a prompt

    def live(self) -> Array:
        """(T, E) bool: the steps that count, which padding does not."""
        return np.ones(self.reward.shape, bool) if self.mask is None else self.mask

    def groups(self) -> Array:
        """Indices (M, b) of disjoint groups of samples for the variance of the policy gradient."""
        return disjoint_groups(*self.reward.shape)


class Batch(NamedTuple):
    """N samples to learn from; float32 tensors, first axis N unless noted. A NamedTuple, so that a step can be compiled."""

    observation: Tensor  # (N, D)
    action: Tensor  # (N, A) or (N,)
    logp_old: Tensor  # (N,) nats
    old: tuple[Tensor, ...]  # parameters of the old distribution, each (N, ...)
    advantage: Tensor  # (N,)
    value_target: Tensor  # (N,)
    value_old: Tensor  # (N,)

    def select(self, index: Tensor) -> Batch:
        """The samples at index (b,)."""

        def pick(x: Tensor) -> Tensor:
            return x.index_select(0, index)  # a third of the time of x[index]

        rest = {name: pick(getattr(self, name)) for name in self._fields if name != "old"}
        return Batch(old=tuple(map(pick, self.old)), **rest)


class Moved(NamedTuple):
    """The new policy seen from a batch of the old one."""

    log_ratio: Tensor  # (N,) nats
    kl: Tensor  # (N,) KL(old || new) at each sample's state, exact, nats; of fewer tokens where a vocabulary is large
    entropy: Tensor  # (N,) of the new policy, nats
    gated: Tensor | None = None  # (N,) the log ratio that the gate sees where it is not log_ratio (whole completions)
    kl_ref: Tensor | None = None  # (M,) exact KL(new || reference) where there is a reference, nats

    @staticmethod
    def stack(epochs: Sequence[Moved]) -> Moved:
        """E of them as one whose tensors have E in front."""
        import torch

        fields: list[Any] = [None if xs[0] is None else torch.stack(xs) for xs in zip(*epochs, strict=True)]
        return Moved(*fields)

    def epoch(self, index: int) -> Moved:
        """One of those that were stacked."""
        fields: list[Any] = [None if x is None else x[index] for x in self]
        return Moved(*fields)


def disjoint_groups(num_steps: int, num_envs: int, smallest: int = 8, largest: int = 32) -> Array:
    """Indices (M, b) of M disjoint groups for the gradient's variance: whole environments where there are at least `smallest`.

    With fewer environments each one is cut into equal blocks of consecutive steps, which ignores the correlation across
    the cuts and says so through the group count. M lies in [smallest, largest] where the rollout is long enough.
    """
    index = np.arange(num_steps * num_envs).reshape(num_steps, num_envs).T  # (E, T)
    if num_envs >= smallest:
        per_group = -(-num_envs // largest)
        num_groups = num_envs // per_group
        return index[: num_groups * per_group].reshape(num_groups, per_group * num_steps)
    blocks = min(-(-16 // num_envs), num_steps)
    length = num_steps // blocks
    return index[:, : blocks * length].reshape(num_envs * blocks, length)
