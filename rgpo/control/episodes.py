"""Returns and lengths of episodes, which may span several rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rgpo.core.rollout import Array
from rgpo.learning.types import State


class OpenEpisodes:
    """Raw, undiscounted returns (E,) and lengths (E,) in steps of the open episodes."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)

    def metrics(self, reward: Array, done: Array) -> dict[str, float]:
        """Number, returns and lengths of the episodes that ended in a rollout (T, E); open ones continue in the next."""
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

    def forget(self, envs: Sequence[int]) -> None:
        """Restart the count of environments whose episodes begin anew."""
        self.returns[envs], self.lengths[envs] = 0.0, 0

    def state_dict(self) -> State:
        return {"episode_return": self.returns.tolist(), "episode_length": self.lengths.tolist()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.returns = np.array(state["episode_return"], np.float64)
        self.lengths = np.array(state["episode_length"], np.int64)


def evaluated(metrics: Mapping[str, float | list[float]], num_episodes: int, longest: int) -> list[str]:
    """A line about the deterministic return, if it was measured, and about episodes that were cut after `longest` steps."""
    if "return/eval_mean" not in metrics:
        return []
    num_cut = metrics.get("return/eval_num_cut", 0.0)
    cut = f" ({num_cut:.0f} of {num_episodes} episodes were cut after {longest:,} steps)" if num_cut else ""
    return [f"deterministic return {metrics['return/eval_mean']:.4g}{cut}"]
