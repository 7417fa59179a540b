"""Vectorized CartPole, bitwise equal to gymnasium's environment, which takes 6 us of CPU time per step of each copy.

    s = (x, x', theta, theta')    f = +-10    m = 1.1, the pole's 0.1 included    l = 0.5    dt = 0.02
    u       = (f + 0.05 theta'^2 sin theta) / m
    theta'' = (9.8 sin theta - cos theta u) / (l (4/3 - 0.1 cos^2 theta / m))
    x''     = u - 0.05 theta'' cos theta / m
    s      += dt (x', x'', theta', theta'')    reward 1    terminated: |x| > 2.4 or |theta| > 12 degrees

Operations keep gymnasium's order, so that results agree to the last bit; tests/test_cartpole.py compares them. Observations
are rounded to float32, as gymnasium's are.
"""

from __future__ import annotations

import math
from typing import TypedDict, cast

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from rgpo.control.envs.gymnasium_env import GymnasiumVector
from rgpo.control.envs.native import Cart, Native, address
from rgpo.control.envs.time_limit import TimeLimit
from rgpo.control.envs.vector_env import Floats, Restart, SavedEnvs, Step, check_saved
from rgpo.core.rollout import Array

TIME_LIMITS = {"CartPole-v0": 200, "CartPole-v1": 500}
GRAVITY, MASS, POLE_MASS, LENGTH, FORCE, DT = 9.8, 1.1, 0.1, 0.5, 10.0, 0.02
POLE_MOMENT = POLE_MASS * LENGTH
MAX_X, MAX_ANGLE = 2.4, 12 * 2 * math.pi / 360


class SavedCart(TypedDict):
    """The state of one copy."""

    state: list[float]  # x, x', theta, theta'
    elapsed: int  # steps of the open episode
    rng: dict[str, object]


class CartPoleVector:
    """E carts; a ``VectorEnv``."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        self.env_id, self.num_envs = env_id, num_envs
        self.time_limit: int | None = TIME_LIMITS[env_id]
        self._timer = TimeLimit(num_envs, TIME_LIMITS[env_id])
        self.module = "gymnasium"  # whose environments this one equals
        self.layers: tuple[str, ...] = ("all copies at once",)
        self.action_space, self.num_actions = spaces.Discrete(2), 2
        high = np.array([MAX_X * 2, np.inf, MAX_ANGLE * 2, np.inf], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)
        self.observation_size = 4
        self._rngs: list[np.random.Generator] = []  # empty before the first reset
        self._state = np.zeros((4, num_envs))  # x, x', theta, theta'
        self._terminated = np.zeros(num_envs, bool)
        self._bounds = np.repeat([[MAX_X], [MAX_ANGLE]], num_envs, 1)
        self._num_unpaid = 0

    def reset(self, seed: int) -> Floats:
        self._rngs = [seeding.np_random(int(seed) + i)[0] for i in range(self.num_envs)]
        for i in range(self.num_envs):
            self._begin(i)
        return self._observe()

    def step(self, actions: Array) -> Step:
        assert self._rngs, "step before reset"
        force = np.where(np.asarray(actions).reshape(-1) == 1, FORCE, -FORCE)
        _, speed, angle, turn = self._state
        cos, sin = np.cos(angle), np.sin(angle)
        push = (force + POLE_MOMENT * np.square(turn) * sin) / MASS
        turning = (GRAVITY * sin - cos * push) / (LENGTH * (4.0 / 3.0 - POLE_MASS * np.square(cos) / MASS))
        pushing = push - POLE_MOMENT * turning * cos / MASS
        self._state += DT * np.array((speed, pushing, turn, turning))
        outside = np.abs(self._state[::2]) > self._bounds
        np.logical_or(outside[0], outside[1], out=self._terminated)
        return self.settle(1)

    def settle(self, num_steps: int) -> Step:
        """For ``NativeEnv``."""
        self._num_unpaid += num_steps
        terminated, truncated = self._terminated, self._timer.advance(num_steps)
        observation = self._observe()
        if truncated is self._timer.never and not terminated.any():
            return Step(observation, terminated, truncated, observation)
        for i in np.flatnonzero(terminated | truncated).tolist():
            self._begin(i)
        return Step(self._observe(), terminated, truncated, observation)

    def native(self, num_steps: int) -> Native:
        """For ``NativeEnv``."""
        seen, cos, sin = self._observe(), np.empty(self.num_envs), np.empty(self.num_envs)
        constants = (FORCE, POLE_MOMENT, MASS, POLE_MASS, GRAVITY, LENGTH, DT, MAX_X, MAX_ANGLE)
        struct = Cart(address(self._state), *constants, address(cos), address(sin))
        return Native(struct, seen, self._terminated, (cos, sin))

    def steps_left(self) -> int:
        return self._timer.left

    def rewards(self) -> Floats:
        count, self._num_unpaid = self._num_unpaid, 0
        return np.ones((count, self.num_envs))

    def state_dict(self) -> SavedEnvs:
        assert self._rngs, "state_dict before reset"
        envs: list[SavedCart] = [
            {"state": self._state[:, i].tolist(), "elapsed": self._timer.elapsed(i), "rng": dict(rng.bit_generator.state)}
            for i, rng in enumerate(self._rngs)
        ]
        return {"backend": "cartpole", "env_id": self.env_id, "envs": envs}

    def load_state_dict(self, state: SavedEnvs) -> list[Restart]:
        """Restore a state of this backend, or of gymnasium's, which ran this task in earlier versions.

        Raises: ConfigError if another task or number of environments wrote it.
        """
        restarts: list[Restart] = []
        if state["backend"] == "gymnasium":
            played = GymnasiumVector(self.env_id, self.num_envs)
            restarts = played.load_state_dict(state)
            state = {"backend": "cartpole", "env_id": self.env_id, "envs": played.episodes()}
        check_saved(state, "cartpole", self.env_id, self.num_envs)
        self._rngs = [seeding.np_random(0)[0] for _ in range(self.num_envs)]
        for i, saved in enumerate(cast(list[SavedCart], state["envs"])):
            self._rngs[i].bit_generator.state = saved["rng"]
            self._state[:, i] = saved["state"]
            self._timer.set_elapsed(i, saved["elapsed"])
        return restarts

    def use_threads(self, num_threads: int) -> None:
        """No-op: all copies are one array, stepped in one thread."""

    def close(self) -> None:
        """Nothing to release."""

    def _begin(self, i: int) -> None:
        """Start an episode near the upright position at rest."""
        self._state[:, i] = self._rngs[i].uniform(-0.05, 0.05, 4)
        self._timer.set_elapsed(i, 0)

    def _observe(self) -> Floats:
        """The state (E, 4), rounded to float32."""
        return self._state.T.astype(np.float32, order="C").astype(np.float64)
