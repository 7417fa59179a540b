"""Four MuJoCo locomotion tasks stepped directly: bitwise equal to gymnasium's environments, and faster.

HalfCheetah, Hopper, Walker2d and Ant in gymnasium's versions v4 and v5; ``mujoco_tasks`` has their formulas. Actions are
clipped to the bounds in float32, as ``GymnasiumVector`` does, and their cost is float32 too. Operations keep gymnasium's
order, so that results agree to the last bit; tests/test_environments.py compares them.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TypedDict, cast

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from rgpo.control.envs.crew import Crew
from rgpo.control.envs.mujoco_model import function_address, has_callbacks, load_model
from rgpo.control.envs.mujoco_tasks import EPISODE_STEPS, TASKS, bounds
from rgpo.control.envs.native import Body, Mujoco, Native, address
from rgpo.control.envs.time_limit import TimeLimit
from rgpo.control.envs.vector_env import Flags, Floats, Restart, SavedEnvs, Step, check_saved
from rgpo.core.rollout import Array

_STATE = int(mujoco.mjtState.mjSTATE_INTEGRATION)  # every input of mj_step, the solver's warm start included


class SavedPhysics(TypedDict):
    """The state of one environment."""

    physics: list[float]
    x: float  # MuJoCo's state does not include the torso's frame
    elapsed: int  # steps of the open episode
    rng: dict[str, object]


class MujocoVector:
    """E copies of one of ``TASKS`` over one shared model; a ``VectorEnv``.

    The operands of a ufunc share one shape and its output is a separate array: broadcasting or overlapping small arrays
    makes numpy three times slower.
    """

    def __init__(self, env_id: str, num_envs: int) -> None:
        self.env_id = env_id
        self.num_envs = num_envs
        self.time_limit: int | None = EPISODE_STEPS
        self.module = "gymnasium"  # whose environments this one equals
        self.layers: tuple[str, ...] = ("MuJoCo stepped directly",)
        self._task = task = TASKS[env_id]
        self._model = model = load_model(task.xml)
        self._data = [mujoco.MjData(model) for _ in range(num_envs)]
        self._rngs: list[np.random.Generator] = []  # empty before the first reset

        low, high = model.actuator_ctrlrange.astype(np.float32).T
        self.action_space, self.num_actions = spaces.Box(low, high, dtype=np.float32), model.nu
        self._low, self._high = np.tile(low, (num_envs, 1)), np.tile(high, (num_envs, 1))
        self._above_low, self._action = (np.zeros((num_envs, model.nu), np.float32) for _ in range(2))

        # copied from the physics: (qpos, qvel), x, and the external force and torque on each body
        size = model.nq + model.nv
        self._coordinates = np.zeros((num_envs, size))
        self._x = self._coordinates[:, 0] if task.measure == "qpos" else np.zeros(num_envs)
        self._forces = np.zeros((num_envs, 6 * model.nbody))
        self._views = [self._physics_views(i) for i in range(num_envs)]
        self._loop = list(zip(self._data, [d.ctrl for d in self._data], self._action, self._views, strict=True))

        self.use_threads(1)

        # observation = (qpos[num_hidden:], qvel, forces on every body but the world)
        num_moving = size - task.num_hidden
        self.observation_size = num_moving + (self._forces.shape[1] - 6 if task.contact_cost is not None else 0)
        self.observation_space = spaces.Box(-inf, inf, (self.observation_size,), np.float64)
        self._observation, self._final = (np.zeros((num_envs, self.observation_size)) for _ in range(2))
        self._moving, self._moving_source = self._observation[:, :num_moving], self._coordinates[:, task.num_hidden :]
        self._velocity = self._observation[:, model.nq - task.num_hidden : num_moving]
        self._fastest = np.full((num_envs, model.nv), task.velocity_clip)

        self._x_before, self._distance = np.zeros(num_envs), np.zeros(num_envs)

        *self._monitored_range, lowest, highest = bounds(task.healthy, size)
        self._monitored = self._coordinates[:, slice(*self._monitored_range)]
        self._lowest, self._highest = np.tile(lowest, (num_envs, 1)), np.tile(highest, (num_envs, 1))
        self._above, self._below = np.zeros_like(self._lowest, bool), np.zeros_like(self._lowest, bool)
        self._healthy, self._terminated = (np.zeros(num_envs, bool) for _ in range(2))
        self._timer = TimeLimit(num_envs, EPISODE_STEPS)
        # the inputs of a step's reward, and their copies at each step since the last call of rewards()
        self._sources = {"distance": self._distance, "action": self._action, "healthy": self._healthy, "forces": self._forces}
        self._paid_by = ["distance", "action"]
        self._paid_by += ["healthy"] if task.bonus == "healthy" else []
        self._paid_by += ["forces"] if task.contact_cost is not None else []
        self._reward_inputs = [self._sources[name] for name in self._paid_by]
        self._unpaid: list[list[Array]] = []
        self._struct: Mujoco | None = None  # for C
        self._kept: list[Array] = []

    def reset(self, seed: int) -> Floats:
        self._rngs = [seeding.np_random(int(seed) + i)[0] for i in range(self.num_envs)]
        for i in range(self.num_envs):
            self._begin(i)
        self._observe()
        return self._observation

    def step(self, actions: Array) -> Step:
        assert self._rngs, "step before reset"
        np.maximum(actions, self._low, out=self._above_low)
        np.minimum(self._above_low, self._high, out=self._action)
        np.copyto(self._x_before, self._x)

        self._simulate()
        self._observe()
        truncated = self._check_end()
        np.subtract(self._x, self._x_before, out=self._distance)
        self._unpaid.append([source[None].copy() for source in self._reward_inputs])
        return self._settled(truncated)

    def _settled(self, truncated: Flags) -> Step:
        """The step in the buffers; starts new episodes in place of those that ended."""
        if truncated is self._timer.never and not (self._task.healthy and np.count_nonzero(self._terminated)):
            return Step(self._observation, self._terminated, truncated, self._observation)
        np.copyto(self._final, self._observation)
        for i in np.flatnonzero(self._terminated | truncated).tolist():
            self._begin(i)
        self._observe()
        return Step(self._observation, self._terminated, truncated, self._final)

    def _simulate_some(self, loop: Sequence[tuple[mujoco.MjData, Array, Array, list[tuple[Array, Array]]]]) -> None:
        """Step the physics of some environments; MuJoCo releases the GIL."""
        model, frame_skip, advance = self._model, self._task.frame_skip, mujoco.mj_step
        has_forces = self._task.contact_cost is not None
        for data, control, action, views in loop:
            control[:] = action
            advance(model, data, frame_skip)
            if has_forces:  # computes outputs only; the trajectory does not depend on it
                mujoco.mj_rnePostConstraint(model, data)
            for target, source in views:
                target[:] = source

    def rewards(self) -> Floats:
        """The formula of ``mujoco_tasks``, in gymnasium's order of operations."""
        task = self._task
        distance, action, *rest = (np.concatenate(column) for column in zip(*self._unpaid, strict=True))
        self._unpaid, self._kept = [], []
        income = distance / (self._model.opt.timestep * task.frame_skip)
        if task.bonus != "none":
            income += rest.pop(0) if task.bonus == "healthy" else 1.0
        cost = np.float32(task.ctrl_cost) * np.square(action).sum(axis=2)
        if task.contact_cost is not None:
            cost = cost + task.contact_cost * np.square(rest.pop()).sum(axis=2)
        reward: Floats = income - cost
        return reward

    def native(self, num_steps: int) -> Native | None:
        """For ``NativeEnv``; None if the user has set a callback in MuJoCo, whose errors C could not pass on."""
        if has_callbacks():
            return None
        if self._struct is None:
            self._struct = self._make_struct()
        kept = {name: np.zeros((num_steps, *source.shape), source.dtype) for name, source in self._sources.items()}
        for name, array in kept.items():
            setattr(self._struct, f"kept_{name}", address(array, array.dtype))
        self._struct.num_threads = min(self._num_threads, os.cpu_count() or 1)
        self._kept, self._num_kept = [kept[name] for name in self._paid_by], 0
        return Native(self._struct, self._observation, self._terminated, (self, kept))

    def _make_struct(self) -> Mujoco:
        task, model = self._task, self._model
        self._bodies = (Body * self.num_envs)()
        for i, (body, data) in enumerate(zip(self._bodies, self._data, strict=True)):
            body.data, body.x = data._address, self._x[i:].ctypes.data
            body.ctrl, body.qpos, body.qvel = (address(x) for x in (data.ctrl, data.qpos, data.qvel))
            body.torso = address(data.xpos[1]) if task.measure == "torso" else None
            body.pushes = address(data.cfrc_ext) if task.contact_cost is not None else None
        return Mujoco(
            *(model._address, function_address("mj_step"), function_address("mj_rnePostConstraint")),
            *(task.frame_skip, model.nq, model.nv, model.nu, task.num_hidden, self._forces.shape[1], 1),
            *(ctypes.addressof(self._bodies), address(self._coordinates), address(self._forces)),
            *(address(self._low, np.float32), address(self._high, np.float32), task.velocity_clip, *self._monitored_range),
            *(address(self._lowest), address(self._highest), address(self._healthy, np.bool_)),
        )

    def steps_left(self) -> int:
        return self._timer.left

    def settle(self, num_steps: int) -> Step:
        begin, self._num_kept = self._num_kept, self._num_kept + num_steps
        self._unpaid.append([array[begin : self._num_kept] for array in self._kept])
        return self._settled(self._timer.advance(num_steps))

    def state_dict(self) -> SavedEnvs:
        assert self._rngs, "state_dict before reset"
        envs: list[SavedPhysics] = []
        for i, data in enumerate(self._data):
            physics = np.empty(mujoco.mj_stateSize(self._model, _STATE))
            mujoco.mj_getState(self._model, data, physics, _STATE)
            envs.append(
                {
                    "physics": physics.tolist(),
                    "x": float(self._x[i]),
                    "elapsed": self._timer.elapsed(i),
                    "rng": dict(self._rngs[i].bit_generator.state),
                }
            )
        return {"backend": "mujoco", "env_id": self.env_id, "envs": envs}

    def load_state_dict(self, state: SavedEnvs) -> list[Restart]:
        """Raises: ConfigError if another task, backend or number of environments wrote the state."""
        check_saved(state, "mujoco", self.env_id, self.num_envs)
        self._rngs = [seeding.np_random(0)[0] for _ in range(self.num_envs)]
        for i, saved in enumerate(cast(list[SavedPhysics], state["envs"])):
            # no mj_forward here: it would change the solver's warm start
            mujoco.mj_resetData(self._model, self._data[i])
            mujoco.mj_setState(self._model, self._data[i], np.asarray(saved["physics"], np.float64), _STATE)
            self._rngs[i].bit_generator.state = saved["rng"]
            self._timer.set_elapsed(i, saved["elapsed"])
            for target, source in self._views[i]:
                target[:] = source
            self._x[i] = saved["x"]
        return []

    def use_threads(self, num_threads: int) -> None:
        """Each thread steps some of the copies."""
        self._num_threads = count = min(num_threads, self.num_envs)
        parts = [partial(MujocoVector._simulate_some, weakref.proxy(self), self._loop[i::count]) for i in range(count)]
        self._simulate: Callable[[], None] = Crew(parts) if count > 1 else parts[0]

    def close(self) -> None:
        """Nothing to release: MuJoCo frees a model with its last reference."""

    def _physics_views(self, i: int) -> list[tuple[Array, Array]]:
        """(target, source) pairs: environment i's rows of the buffers, and the physics they are copied from."""
        data, nq = self._data[i], self._model.nq
        views = [(self._coordinates[i, :nq], data.qpos), (self._coordinates[i, nq:], data.qvel)]
        if self._task.measure == "torso":
            views.append((self._x[i : i + 1], data.xpos[1, :1]))  # body 0 is the world
        if self._task.contact_cost is not None:
            views.append((self._forces[i].reshape(-1, 6), data.cfrc_ext))
        return views

    def _begin(self, i: int) -> None:
        """Start an episode: qpos0 and velocity 0, plus noise from the environment's generator."""
        task, model, data, rng = self._task, self._model, self._data[i], self._rngs[i]
        mujoco.mj_resetData(model, data)
        data.qpos[:] = model.qpos0 + rng.uniform(-task.reset_noise, task.reset_noise, model.nq)
        if task.velocity_noise == "normal":
            data.qvel[:] = task.reset_noise * rng.standard_normal(model.nv)
        else:
            data.qvel[:] = rng.uniform(-task.reset_noise, task.reset_noise, model.nv)
        mujoco.mj_forward(model, data)
        for target, source in self._views[i]:
            target[:] = source
        self._timer.set_elapsed(i, 0)

    def _observe(self) -> None:
        """Fill the observation from the coordinates and forces."""
        np.copyto(self._moving, self._moving_source)
        if self._task.velocity_clip < inf:
            np.clip(self._velocity, -self._fastest, self._fastest, out=self._velocity)
        if self._task.contact_cost is not None:
            np.clip(self._forces, -1.0, 1.0, out=self._forces)
            self._observation[:, self._moving.shape[1] :] = self._forces[:, 6:]

    def _check_end(self) -> Flags:
        """Advance the clock, fill healthy and terminated, and return truncated (E,)."""
        if self._task.healthy:
            np.less(self._lowest, self._monitored, out=self._above)
            np.less(self._monitored, self._highest, out=self._below)
            np.logical_and(self._above, self._below, out=self._above)
            np.logical_and.reduce(self._above, axis=1, out=self._healthy)
            np.logical_not(self._healthy, out=self._terminated)
        return self._timer.advance()
