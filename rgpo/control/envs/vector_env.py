"""Vector environments: E copies of one environment, stepped in one process, whose state can be saved exactly.

Shapes: E environments, D numbers an observation, A the shape of one action. Observations are flat float64, rewards raw.
Two backends share the protocol ``VectorEnv``: ``GymnasiumVector`` for any installed id and, for eight of them, the direct
``rgpo.control.envs.mujoco_env.MujocoVector``.

Autoreset is SAME_STEP: the step that ends an episode returns the next episode's first observation, and the true last
one as ``final_observation``, so no transition of a rollout joins two episodes.
"""

from __future__ import annotations

import difflib
import warnings
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rgpo.errors import ConfigError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Step(NamedTuple):
    """What one step of all environments returns; the arrays are buffers that the next step or reset overwrites."""

    observation: Floats  # (E, D) after autoreset
    terminated: Flags  # (E,) the episode ended by itself
    truncated: Flags  # (E,) the episode was cut by a time limit; both flags may be set
    final_observation: Floats  # (E, D) the true next observation; `observation` itself where no episode ended


class VectorEnv(Protocol):
    """E copies of an environment; **the caller copies** whatever it keeps of a returned array."""

    num_envs: int
    observation_size: int  # D
    action_space: spaces.Space[Any]  # of one environment

    def reset(self, seed: int) -> Floats:
        """Start every environment afresh, number i seeded with seed + i; (E, D)."""
        ...

    def step(self, actions: npt.NDArray[Any]) -> Step:
        """Act in every environment: (E, *A) floats, clipped here to the bounds, or (E,) indices 0..n-1 for Discrete."""
        ...

    def rewards(self) -> Floats:
        """Raw rewards (T, E) of the T steps since it was last asked; acting does not see them, so they can wait."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything later steps depend on, as lists, dicts, strings, ints and floats only (exact in float64)."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state: the following steps equal the uninterrupted ones bitwise."""
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...


def make_vector_env(env_id: str, num_envs: int, backend: str = "auto", **kwargs: Any) -> VectorEnv:
    """Make ``num_envs`` copies; ``auto`` takes the direct MuJoCo backend where it knows the id and no kwargs are given.

    Raises ConfigError for an unknown id or backend, a missing dependency, unsupported spaces and num_envs < 1.
    """
    from rgpo.control.envs.mujoco_tasks import TASKS

    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs} is not possible: give the number of environment copies, 1 or more")
    if backend not in ("auto", "gymnasium", "mujoco"):
        raise ConfigError(f"backend={backend!r} is unknown: choose auto, gymnasium or mujoco")
    direct = env_id in TASKS and not kwargs
    if backend == "mujoco" and not direct:
        raise ConfigError(
            f"backend='mujoco' cannot run env_id={env_id!r} with kwargs {kwargs}: it knows {', '.join(TASKS)} without "
            "kwargs, so choose one of them or backend='gymnasium'"
        )
    if direct and backend != "gymnasium":
        from rgpo.control.envs.mujoco_env import MujocoVector

        return MujocoVector(env_id, num_envs)
    return GymnasiumVector(env_id, num_envs, **kwargs)


def check_saved(state: dict[str, Any], backend: str, env_id: str, num_envs: int) -> None:
    """Raise ConfigError unless a state was saved by the same backend with the same id and number of environments."""
    saved, wanted = (state["backend"], state["env_id"], len(state["envs"])), (backend, env_id, num_envs)
    if saved != wanted:
        raise ConfigError(
            f"the saved environments (backend, env_id, num_envs) = {saved} do not fit {wanted}: resume with the "
            "configuration that saved them"
        )


class GymnasiumVector:
    """Any gymnasium environment with Box or Discrete spaces, E copies in a plain loop.

    gymnasium offers no way to save an environment, so a state is the recipe of the open episodes: the seed, np_random's
    state at the start of the episode and the actions since. Loading plays them again and compares np_random, the last
    observation and a checksum over all observations and rewards; what an environment carries over from earlier episodes
    is noticed only where it shows in these. Memory grows with the open episode: one action a step.
    """

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any) -> None:
        self.env_id = env_id
        self.num_envs = num_envs
        self._envs = [_make(env_id, kwargs) for _ in range(num_envs)]
        self.action_space = self._envs[0].action_space
        self._observation_space = self._envs[0].observation_space
        self.observation_size = _flat_size(env_id, self._observation_space)
        _check_actions(env_id, self.action_space)

        shape = (num_envs, self.observation_size)
        self._observation, self._final = np.zeros(shape), np.zeros(shape)
        self._reward = np.zeros(num_envs)
        self._paid: list[Floats] = []
        self._terminated, self._truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self._rows = list(self._observation)
        box = isinstance(self._observation_space, spaces.Box)
        self._shaped = [row.reshape(self._observation_space.shape) for row in self._rows] if box else []
        self._row_bytes = [row.data for row in self._rows]
        self._reward_bytes = [self._reward[i : i + 1].data for i in range(num_envs)]

        self._seed = -1  # of environment 0; -1 before the first reset
        self._episode_rng: list[dict[str, Any] | None] = [None] * num_envs  # None: the episode began with the seed
        self._actions: list[list[Any]] = [[] for _ in range(num_envs)]  # of the open episodes
        self._checksum = [0] * num_envs

    def reset(self, seed: int) -> Floats:
        self._seed = int(seed)
        for i in range(self.num_envs):
            self._begin(i, self._seed + i)
        return self._observation

    def step(self, actions: npt.NDArray[Any]) -> Step:
        for i, action in enumerate(self._to_env(actions)):
            self._advance(i, action)
        self._paid.append(self._reward.copy())
        ended = np.flatnonzero(self._terminated | self._truncated)
        if not ended.size:
            return Step(self._observation, self._terminated, self._truncated, self._observation)
        np.copyto(self._final, self._observation)
        for i in ended.tolist():
            self._begin(i, None)
        return Step(self._observation, self._terminated, self._truncated, self._final)

    def rewards(self) -> Floats:
        paid, self._paid = self._paid, []
        return np.array(paid)

    def state_dict(self) -> dict[str, Any]:
        """Raises ConfigError where an environment's np_random is not the generator that gymnasium gives it."""
        assert self._seed >= 0, "state_dict before reset"
        envs = []
        for i, env in enumerate(self._envs):
            rng, episode_rng = _rng_state(env), self._episode_rng[i]
            if rng.get("bit_generator") != "PCG64" or (episode_rng is not None and not episode_rng):
                raise ConfigError(
                    f"environment {self.env_id!r} cannot be resumed exactly: its np_random is not gymnasium's PCG64 "
                    "generator, so run it without saving"
                )
            envs.append(
                {
                    "seed": self._seed + i,
                    "episode_rng": episode_rng,
                    "rng": rng,
                    "actions": [a.tolist() for a in self._actions[i]],
                    "observation": self._rows[i].tolist(),
                    "checksum": self._checksum[i],
                }
            )
        return {"backend": "gymnasium", "env_id": self.env_id, "envs": envs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ConfigError where the replayed episode differs from the saved one in any bit."""
        check_saved(state, "gymnasium", self.env_id, self.num_envs)
        self._seed = state["envs"][0]["seed"]
        for i, (env, saved) in enumerate(zip(self._envs, state["envs"], strict=True)):
            self._begin(i, saved["seed"])
            if saved["episode_rng"] is not None:
                env.unwrapped.np_random.bit_generator.state = saved["episode_rng"]
                self._begin(i, None)
            for action in saved["actions"]:
                self._advance(i, np.asarray(action, self.action_space.dtype)[()])
                if self._terminated[i] or self._truncated[i]:
                    break
            if (
                len(self._actions[i]) != len(saved["actions"])
                or self._terminated[i]
                or self._truncated[i]
                or self._checksum[i] != saved["checksum"]
                or self._rows[i].tobytes() != np.asarray(saved["observation"], np.float64).tobytes()
                or _rng_state(env) != saved["rng"]
            ):
                raise ConfigError(
                    f"environment {self.env_id!r} cannot be resumed exactly: replaying the {len(saved['actions'])} "
                    f"actions of its open episode (copy {i}) did not give the saved observations and rewards again, so "
                    "it depends on more than its np_random and its actions, and the run has to be started afresh"
                )

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _begin(self, i: int, seed: int | None) -> None:
        """Start an episode; without a seed np_random goes on where it is."""
        env = self._envs[i]
        self._episode_rng[i] = None if seed is not None else _rng_state(env)
        self._write(i, env.reset(seed=seed)[0])
        self._actions[i] = []
        self._checksum[i] = crc32(self._row_bytes[i])

    def _advance(self, i: int, action: Any) -> None:
        observation, self._reward[i], self._terminated[i], self._truncated[i], _ = self._envs[i].step(action)
        self._write(i, observation)
        self._actions[i].append(action)
        self._checksum[i] = crc32(self._reward_bytes[i], crc32(self._row_bytes[i], self._checksum[i]))

    def _write(self, i: int, observation: Any) -> None:
        """Box: flattened and cast to float64. Discrete: one-hot."""
        if self._shaped:
            self._shaped[i][...] = observation
        else:
            self._rows[i][:] = 0.0
            self._rows[i][int(observation) - int(self._observation_space.start)] = 1.0

    def _to_env(self, actions: npt.NDArray[Any]) -> list[Any]:
        """One action an environment, in fresh memory (an environment may keep what it is given)."""
        space = self.action_space
        if isinstance(space, spaces.Discrete):
            return list(np.asarray(actions) + space.start)  # numpy's own integers, as the space draws them
        return list(np.minimum(np.maximum(actions, space.low), space.high).astype(space.dtype, copy=False))


def _make(env_id: str, kwargs: dict[str, Any]) -> Any:
    """``gymnasium.make``; raises ConfigError with near matches or gymnasium's own remedy."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # v4 is asked for on purpose
            return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.NamespaceNotFound as error:
        raise ConfigError(
            f"env_id={env_id!r} is not registered with gymnasium: install the package that brings it and name its "
            f"module before a colon (pip install ale-py, then ale_py:ALE/Pong-v5){_near(env_id)}"
        ) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError, TypeError) as error:
        given = f" with kwargs {kwargs}" if kwargs else ""
        raise ConfigError(f"env_id={env_id!r}{given} cannot be made by gymnasium: {str(error).rstrip('.')}") from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"env_id={env_id!r} is not an environment of this gymnasium installation{_near(env_id)}") from error


def _near(env_id: str) -> str:
    names = {name.lower(): name for name in gymnasium.registry}
    near = [names[key] for key in difflib.get_close_matches(env_id.lower(), names, n=3)]
    return f"; did you mean {' or '.join(near)}?" if near else "; gymnasium.pprint_registry() lists the registered ids"


def _rng_state(env: Any) -> dict[str, Any]:
    """State of the environment's own generator, empty if that is not a numpy Generator."""
    rng = env.unwrapped.np_random
    return dict(rng.bit_generator.state) if isinstance(rng, np.random.Generator) else {}


def _flat_size(env_id: str, space: spaces.Space[Any]) -> int:
    if isinstance(space, spaces.Box):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    raise ConfigError(
        f"env_id={env_id!r} observes {space}, which is not supported: Box (flattened) and Discrete (one-hot) are, so "
        "wrap the environment in gymnasium.wrappers.FlattenObservation and register that"
    )


def _check_actions(env_id: str, space: spaces.Space[Any]) -> None:
    if not (isinstance(space, spaces.Discrete) or (isinstance(space, spaces.Box) and space.dtype.kind == "f")):
        raise ConfigError(
            f"env_id={env_id!r} acts in {space}, which is not supported: Box of floats and Discrete are, so wrap the "
            "environment in one of these and register that"
        )
