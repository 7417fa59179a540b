"""Statistics of training episodes, which may begin in one rollout and end in another."""

from __future__ import annotations

from typing import cast

import numpy as np

from rgpo.core.rollout import Array
from rgpo.learning.types import State


class Episodes:
    """Returns and lengths (steps) of the open episode of each of E environments."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)

    def __call__(self, reward: Array, done: Array) -> dict[str, float]:
        """Metrics of the episodes that ended in a rollout (T, E); open ones continue in the next."""
        returns: list[float] = []
        lengths: list[int] = []
        for e in range(reward.shape[1]):
            begin = 0
            for end in (np.flatnonzero(done[:, e]) + 1).tolist():
                returns.append(float(self.returns[e] + reward[begin:end, e].sum()))
                lengths.append(int(self.lengths[e]) + end - begin)
                self.returns[e], self.lengths[e], begin = 0.0, 0, end
            self.returns[e] += reward[begin:, e].sum()
            self.lengths[e] += len(reward) - begin
        metrics = {"return/num_episodes": float(len(returns))}
        if returns:
            metrics["return/train_mean"] = float(np.mean(returns))
            metrics["return/train_std"] = float(np.std(returns))
            metrics["return/length_mean"] = float(np.mean(lengths))
        return metrics

    def state_dict(self) -> State:
        """As the keys of a task's state."""
        return {"episode_return": self.returns.tolist(), "episode_length": self.lengths.tolist()}

    def load_state_dict(self, state: State) -> None:
        """Read the keys of a task's state."""
        self.returns = np.array(cast(list[float], state["episode_return"]))
        self.lengths = np.array(cast(list[int], state["episode_length"]), np.int64)
