"""Rollouts: the part of a task's collected data that advantage estimators read.

Shapes: T steps of E environments (or completions), N = T E samples in time-major order, M groups of b samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(kw_only=True)
class Rollout:
    """T steps of E environments under the old policy; rewards are the learner's (normalized if the task normalizes them)."""

    reward: Array  # (T, E) float64
    terminated: Array  # (T, E) bool: the episode ended, so its future has value 0
    done: Array  # (T, E) bool: terminated or truncated
    value: Array  # (T, E) float64, V of the observation
    next_value: Array  # (T, E) float64, V of the true next observation, before any reset
    metrics: dict[str, float]  # measured by the task while collecting
    rows: Sequence[Mapping[str, object]] = ()  # of rollouts.parquet, one per environment, if this rollout is to be logged
    mask: Array | None = None  # (T, E) bool, True at real steps; None: no padding
    group_size: int = 1  # consecutive environments that share a prompt

    def live(self) -> Array:
        """(T, E) bool: True at the steps that are not padding."""
        return np.ones(self.reward.shape, bool) if self.mask is None else self.mask

    def groups(self) -> Array:
        """Indices (M, b) of disjoint groups of samples, used to estimate the variance of the policy gradient."""
        return disjoint_groups(*self.reward.shape)


def disjoint_groups(num_steps: int, num_envs: int, smallest: int = 8, largest: int = 32) -> Array:
    """Indices (M, b) of M disjoint groups for the gradient's variance: whole environments if there are at least `smallest`.

    With fewer environments (then M > E), each one is cut into equal blocks of consecutive steps, which ignores the
    correlation across the cuts. M is in [smallest, largest] if the rollout is long enough.
    """
    index = np.arange(num_steps * num_envs).reshape(num_steps, num_envs).T  # (E, T)
    if num_envs >= smallest:
        per_group = -(-num_envs // largest)
        num_groups = num_envs // per_group
        return index[: num_groups * per_group].reshape(num_groups, per_group * num_steps)
    blocks = min(-(-16 // num_envs), num_steps)
    length = num_steps // blocks
    return index[:, : blocks * length].reshape(num_envs * blocks, length)
