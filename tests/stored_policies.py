"""Small control runs whose policies are stored, and observations for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import rgpo

SMALL = (
    "task.num_envs=2",
    "task.num_steps=32",
    "task.num_eval_episodes=2",
    "num_iterations=2",
    "eval_every=2",
    "gradvar_every=0",
)


class Odd(gymnasium.Env):
    """Box actions of shape (2, 2) with one-sided and asymmetric bounds, or Discrete spaces that start elsewhere."""

    def __init__(self, discrete: bool = False) -> None:
        if discrete:
            self.observation_space: Any = spaces.Discrete(4, start=-2)
            self.action_space: Any = spaces.Discrete(3, start=5)
        else:
            self.observation_space = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
            low = np.array([[-0.01, -np.inf], [-3, 0.5]], np.float32)
            self.action_space = spaces.Box(low, np.array([[0.02, 0.1], [np.inf, 2]], np.float32))

    def _seen(self) -> Any:
        if isinstance(self.observation_space, spaces.Discrete):
            return int(self.np_random.integers(-2, 2))
        return self.np_random.normal(3.0, 5.0, (2, 3))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return self._seen(), float(np.sum(action)), bool(self.np_random.random() < 0.1), False, {}


gymnasium.register("Shapes-v0", Odd)
CASES = {
    "cartpole": ("algo=ppo", "task=cartpole", "update.num_minibatches=4"),
    "hopper": ("algo=a2c", "task=hopper"),
    "relu": ("algo=trpo", "task=pendulum", "task.policy.activation=relu", "task.policy.hidden_sizes=[8]"),
    "odd box": ("algo=ppo", "task=gym", "task.env_id=Shapes-v0", "update.num_minibatches=4"),
    "odd discrete": (
        *("algo=ppo", "task=gym", "task.env_id=Shapes-v0"),
        *("+task.env_kwargs.discrete=true", "update.num_minibatches=4"),
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], rgpo.Run]:
    folder, made = tmp_path_factory.mktemp("runs"), dict[str, rgpo.Run]()

    def make(name: str) -> rgpo.Run:
        if name not in made:
            made[name] = rgpo.run(*CASES[name], *SMALL, f"results_dir={folder}")
        return rgpo.load(made[name].folder)

    return make


def observations(run: rgpo.Run, count: int = 50) -> np.ndarray[Any, Any]:
    """Raw observations of the run's environment."""
    env, seen = run.task.make_env(1), []
    env.reset(3)
    space = env.observation_space
    for i in range(count):
        space.seed(i)
        seen.append(space.sample() if isinstance(space, spaces.Discrete) else np.random.default_rng(i).normal(2, 4, space.shape))
    return np.array(seen)


def flat(run: rgpo.Run, seen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As the vector environment would return them."""
    space = run.task.env.observation_space
    return np.eye(space.n)[seen - space.start] if isinstance(space, spaces.Discrete) else seen.reshape(len(seen), -1)
