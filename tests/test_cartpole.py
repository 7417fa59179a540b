"""CartPole for all copies at once against gymnasium's own, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rgpo.control.envs.cartpole_env import CartPoleVector
from rgpo.control.envs.gymnasium_env import GymnasiumVector
from rgpo.control.envs.make_env import make_vector_env
from rgpo.errors import ConfigError

Act = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def balance(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keeps some poles up until the time limit; the others are pushed at random more often."""
    up = (observation[:, 2] + 0.5 * observation[:, 3] + 0.02 * observation[:, 0] + 0.05 * observation[:, 1] > 0).astype(np.int64)
    return np.where(rng.random(len(up)) < np.linspace(0.1, 0.9, len(up)), rng.integers(0, 2, len(up)), up)


def anything(observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, len(observation))


@pytest.mark.parametrize(
    ("env_id", "num_envs", "act"), [("CartPole-v1", 8, balance), ("CartPole-v0", 3, balance), ("CartPole-v1", 1, anything)]
)
@pytest.mark.parametrize("seed", [0, 12345])
def test_every_step_equals_gymnasiums(env_id: str, num_envs: int, act: Act, seed: int) -> None:
    ours, theirs = make_vector_env(env_id, num_envs, "auto"), make_vector_env(env_id, num_envs, "gymnasium")
    assert isinstance(ours, CartPoleVector) and isinstance(theirs, GymnasiumVector)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    assert ours.time_limit == theirs.time_limit and ours.observation_size == theirs.observation_size
    rng, ends = np.random.default_rng(seed), np.zeros(2, int)
    for again in range(2):  # a second reset begins anew
        observation = ours.reset(seed + again)
        assert np.array_equal(observation, theirs.reset(seed + again))
        for _ in range(1200):
            action = act(observation, rng)
            step, expected = ours.step(action), theirs.step(action)
            assert all(np.array_equal(x, y) for x, y in zip(step, expected, strict=True))
            observation = step.observation
            ends += [step.terminated.sum(), step.truncated.sum()]
        assert np.array_equal(ours.rewards(), theirs.rewards())
    assert ends[0] > 0 and (act is anything or ends[1] > 0)


@pytest.mark.parametrize("earlier", ["auto", "gymnasium"])
def test_a_restored_state_continues_bit_for_bit(earlier: str, tmp_path: Any) -> None:
    """Also one that gymnasium's backend wrote, as earlier versions did."""
    rng = np.random.default_rng(3)
    env = make_vector_env("CartPole-v1", 4, earlier)
    observation = env.reset(7)
    for _ in range(700):
        observation = env.step(balance(observation, rng)).observation
    torch.save(env.state_dict(), tmp_path / "state.pt")
    fresh = make_vector_env("CartPole-v1", 4, "auto")
    fresh.reset(99)
    assert fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)) == []
    for _ in range(600):
        action = balance(observation, rng)
        step, expected = fresh.step(action), env.step(action)
        assert all(np.array_equal(x, y) for x, y in zip(step, expected, strict=True))
        observation = step.observation


def test_a_state_of_another_number_of_copies_is_refused() -> None:
    env, other = make_vector_env("CartPole-v1", 2, "auto"), make_vector_env("CartPole-v1", 3, "auto")
    env.reset(0)
    other.reset(0)
    with pytest.raises(ConfigError, match="checkpoint: its environments"):
        other.load_state_dict(env.state_dict())


def test_a_step_makes_as_many_calls_for_many_copies_as_for_one() -> None:
    """The guard of its speed: no loop over copies while no episode ends."""

    def calls(num_envs: int) -> int:
        env, count = make_vector_env("CartPole-v1", num_envs, "auto"), 0

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        env.reset(0)
        action = np.zeros(num_envs, np.int64)
        sys.setprofile(profile)
        try:
            env.step(action)
        finally:
            sys.setprofile(None)
        return count

    assert calls(1) == calls(64) <= 40
