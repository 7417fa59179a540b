"""Returns and lengths of episodes, which may span several rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rgpo.control import finite
from rgpo.control.envs.vector_env import VectorEnv
from rgpo.core.rollout import Array
from rgpo.learning.types import State

LONGEST_EVALUATION = 10_000  # steps after which an evaluation episode without a time limit is cut


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
        """Reset the counts of environments whose episodes restart."""
        self.returns[envs], self.lengths[envs] = 0.0, 0

    def state_dict(self) -> State:
        return {"episode_return": self.returns.tolist(), "episode_length": self.lengths.tolist()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self.returns = np.array(state["episode_return"], np.float64)
        self.lengths = np.array(state["episode_length"], np.int64)


def evaluated(metrics: Mapping[str, float | list[float]], num_episodes: int) -> list[str]:
    """A line about the deterministic return, if it was measured, and about episodes that were cut."""
    if "return/eval_mean" not in metrics:
        return []
    num_cut = metrics.get("return/eval_num_cut", 0.0)
    cut = f" ({num_cut:.0f} of {num_episodes} episodes were cut after {LONGEST_EVALUATION:,} steps)" if num_cut else ""
    return [f"deterministic return {metrics['return/eval_mean']:.4g}{cut}"]


def mode_returns(
    env: VectorEnv, env_id: str, seed: int, *, prepare: Callable[[Array], Array], act: Callable[[Array], Array]
) -> dict[str, float]:
    """Raw return of one episode per environment, mean and standard deviation; act maps prepared observations to actions.

    Raises: NonFiniteError if an observation or a reward is NaN or infinite.
    """
    seen = prepare(env.reset(seed))
    running = [np.ones(len(seen), bool)]  # which episodes each step belongs to
    while running[-1].any() and len(running) <= LONGEST_EVALUATION:
        finite.require_evaluated("observation", env_id, seen[running[-1]])
        step = env.step(act(seen))
        running.append(running[-1] & ~(step.terminated | step.truncated))
        seen = prepare(step.observation)
    reward = np.where(running[:-1], env.rewards(), 0.0)
    finite.require_evaluated("reward", env_id, reward)
    total, num_cut = reward.sum(0), int(running[-1].sum())
    cut = {"return/eval_num_cut": float(num_cut)} if num_cut else {}
    return {"return/eval_mean": float(total.mean()), "return/eval_std": float(total.std()), **cut}
