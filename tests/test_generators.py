"""Random generators of environments: numpy's are resumed bit for bit, others begin anew."""

import io
import random
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from test_environments import make, play, random_actions


class Noisy(gymnasium.Env):
    """np_random of any kind moves the state; with `in_place`, the action is changed before it is used."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, generator: Any = None, in_place: bool = False) -> None:
        self.generator, self.in_place, self.rng = generator, in_place, None

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if self.generator is not None and seed is not None:
            self.np_random = self.generator(seed)
        self.x = np.float32(self.np_random.normal())
        return np.array([self.x], np.float32), {}

    def step(self, action):
        if self.in_place:
            action *= 5.0
        self.x += np.float32(0.1) * action[0] + np.float32(self.np_random.normal())
        return np.array([self.x], np.float32), float(self.x), bool(abs(self.x) > 3), False, {}


gymnasium.register("Noisy-v0", Noisy)
GENERATORS: dict[str, Any] = {
    name: (lambda seed, name=name: np.random.Generator(getattr(np.random, name)(seed)))
    for name in ("MT19937", "Philox", "SFC64", "PCG64DXSM")
} | {"RandomState": np.random.RandomState, "none": None}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_of_numpy_is_resumed_bit_for_bit(name: str) -> None:
    """Through the same file format as a checkpoint; and an action that the environment changes in place is kept as it was."""
    kwargs = {"generator": GENERATORS[name], "in_place": name == "none"}
    env, fresh = (make("Noisy-v0", 2, **kwargs) for _ in range(2))
    env.reset(0)
    actions = random_actions(env, 40, 0)
    play(env, actions[:33])
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    assert fresh.load_state_dict(torch.load(file, weights_only=True)) == []
    for expected, got in zip(play(env, actions[33:]), play(fresh, actions[33:]), strict=True):
        assert np.array_equal(expected, got)


def test_a_generator_that_is_not_numpys_is_saved_and_begins_anew() -> None:
    env, fresh = (make("Noisy-v0", 1, generator=Gauss) for _ in range(2))
    env.reset(0)
    play(env, random_actions(env, 40, 0))
    (restart,) = fresh.load_state_dict(env.state_dict())
    assert "np_random is of a kind" in restart.why


class Gauss(random.Random):
    """Python's generator with numpy's method."""

    def normal(self) -> float:
        return self.gauss(0.0, 1.0)
