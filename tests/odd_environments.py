"""Environments for the check before training: a sound one, faulty ones, and some that only seem odd."""

from __future__ import annotations

import os
import random
import tempfile
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


class Sound(gymnasium.Env):
    """A point that the action and np_random move."""

    observation_space: Any = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space: Any = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        return self.see(), {}

    def see(self) -> Any:
        return np.array([self.x, self.t / 10], np.float32)

    def step(self, action: Any) -> Any:
        self.x, self.t = self.x + 0.1 * float(action[0]), self.t + 1
        return self.see(), -abs(self.x), False, self.t >= 20, {}


class OwnGenerator(Sound):
    def reset(self, seed: Any = None, options: Any = None) -> Any:
        if seed is not None:
            self.rng = random.Random(seed)
        self.x, self.t = self.rng.gauss(0, 1), 0
        return self.see(), {}


class NoSeed(Sound):
    def reset(self, seed: Any = None, options: Any = None) -> Any:
        self.x, self.t = random.random(), 0
        return self.see(), {}


class NoisyStep(Sound):
    def see(self) -> Any:
        return np.array([random.random() if self.t > 4 else self.x, self.t], np.float32)


class Wider(Sound):
    def see(self) -> Any:
        return super().see().astype(np.float64)


class Outside(Sound):
    observation_space = spaces.Box(np.array([-np.inf, 0], np.float32), np.array([np.inf, 0.25], np.float32))


class WholeFlags(Sound):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, int(terminated), truncated, info


class Alone(Sound):
    def reset(self, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0]


class Scalar(Sound):
    def see(self) -> Any:
        return np.float32(1.0)


class NoInfo(Sound):
    def reset(self, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)[0], None


class Raises(Sound):
    def step(self, action: Any) -> Any:
        raise KeyError("the valve is lost")


class OldReset(Sound):
    def reset(self) -> Any:
        return self.see(), {}


class NaNReward(Sound):
    def step(self, action: Any) -> Any:
        return self.see(), float("nan"), False, False, {}


class OneElement(Sound):
    def step(self, action: Any) -> Any:
        return self.see(), np.ones(1), False, False, {}


class Moves(Sound):
    """Changes what belongs to the whole process."""

    def __init__(self) -> None:
        os.chdir(tempfile.gettempdir())
        torch.set_default_dtype(torch.float64)

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        os.chdir("/")
        return super().reset(seed=seed)


class HugeReward(Sound):
    def step(self, action: Any) -> Any:
        return self.see(), 10**400, False, False, {}


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class RaisesSilently(Sound):
    def step(self, action: Any) -> Any:
        raise Silent


class Leaves(Sound):
    def step(self, action: Any) -> Any:
        raise GeneratorExit


class NoSpace(Sound):
    action_space = None


class PlainDict(Sound):
    observation_space = {"a": spaces.Discrete(2)}


class NoNumbers(Sound):
    action_space = spaces.Box(-1, 1, (0,))


class EmptyPart(Sound):
    action_space = spaces.Tuple((spaces.Discrete(2), spaces.Tuple(())))


class NumberedParts(Sound):
    action_space = spaces.Dict({1: spaces.Discrete(2), 2: spaces.Discrete(2)})


class Small(Sound):
    """Actions of a type of their own."""

    action_space = spaces.Discrete(3, start=1, dtype=np.int32)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action) and action.dtype == np.int32
        return super().step([float(action)])


class Keywords(Sound):
    def __init__(self, backend: str = "cpu", num_envs: int = 1, wrappers: Any = None, raises: bool = False) -> None:
        if raises:
            raise GeneratorExit("stopped")
        self.backend = backend


class ScalarAction(Sound):
    """An action of shape (), which arrives as the space samples it."""

    action_space = spaces.Box(-1, 1, (), np.float32)

    def step(self, action: Any) -> Any:
        assert isinstance(action, np.ndarray) and action.shape == ()
        return super().step(action[None])


class OneAtATime(Sound):
    taken = False

    def __init__(self) -> None:
        if OneAtATime.taken:
            raise RuntimeError("port 5005 is in use")
        OneAtATime.taken = True

    def close(self) -> None:
        OneAtATime.taken = False


ALL = (Sound, OwnGenerator, NoSeed, NoisyStep, Wider, Outside, WholeFlags, Alone, Scalar, NoInfo)
WRONG_SPACES = (NoSpace, PlainDict, NoNumbers, EmptyPart, NumberedParts)
ALL += (Raises, OldReset, NaNReward, OneElement, Moves, HugeReward, RaisesSilently, Leaves, Small, *WRONG_SPACES)
for kind in ALL:
    gymnasium.register(f"Check{kind.__name__}-v0", kind, max_episode_steps=1000)
for kind in (Keywords, ScalarAction, OneAtATime):
    gymnasium.register(f"Check{kind.__name__}-v0", kind)
