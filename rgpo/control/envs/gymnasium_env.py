"""Any gymnasium environment as a ``VectorEnv``."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rgpo.control.envs.described import describe_spaces, is_pixels, wrapped
from rgpo.control.envs.vector_env import Floats, Step, check_saved
from rgpo.control.spaces import flatten, heads, observation_size, row, to_env
from rgpo.errors import ConfigError, first_line

REAL = (float, int, np.floating, np.integer, np.bool_)


class GymnasiumVector:
    """E copies of a gymnasium environment in a plain loop.

    gymnasium cannot save an environment, so a state holds the seed, np_random's state at the start of the open episode and
    the actions since. Loading replays them and compares np_random, the last observation and a checksum of all observations
    and rewards; state that an environment carries over from earlier episodes is detected only if it changes one of these.
    Memory grows by one action per step of the open episode.
    """

    def __init__(self, env_id: str, num_envs: int, wrappers: Sequence[Callable[[Any], Any]] = (), **kwargs: Any) -> None:
        self.env_id = env_id
        self.num_envs = num_envs
        self._envs = [wrapped(_make(env_id, kwargs), wrappers) for _ in range(num_envs)]
        self.action_space = self._envs[0].action_space
        self.observation_space = self._envs[0].observation_space
        self._seen, self._acted = describe_spaces(env_id, self.observation_space, self.action_space)
        # a single index or a Box of floats, which are clipped and shaped for all copies at once
        self._plain = [head.kind for head in heads(self._acted)] in (["gaussian"], ["categorical"]) and (
            self._acted["type"] in ("Box", "Discrete") and self._acted.get("dtype", "f")[0] == "f"
        )
        self.observation_size = observation_size(self._seen)

        shape, dtype = (num_envs, self.observation_size), np.uint8 if is_pixels(self.observation_space) else np.float64
        self._observation, self._final = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self._reward = np.zeros(num_envs)
        self._paid: list[Floats] = []
        self._terminated, self._truncated = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
        self._rows = list(self._observation)
        box = isinstance(self.observation_space, spaces.Box)
        self._shape, self._dtype = self.observation_space.shape or (), self.observation_space.dtype
        self._shaped = [row.reshape(self._shape) for row in self._rows] if box else []
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
        """Raises: ConfigError if an environment replaced gymnasium's np_random by another generator."""
        assert self._seed >= 0, "state_dict before reset"
        envs = []
        for i, env in enumerate(self._envs):
            rng, episode_rng = _rng_state(env), self._episode_rng[i]
            if rng.get("bit_generator") != "PCG64" or (episode_rng is not None and not episode_rng):
                raise ConfigError(
                    f"task.env_id={self.env_id}: cannot be resumed exactly, because its np_random is not gymnasium's PCG64 "
                    "generator; run it without checkpoints."
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
        """Raises: ConfigError if the replayed episode differs from the saved one in any bit."""
        check_saved(state, "gymnasium", self.env_id, self.num_envs)
        self._seed = state["envs"][0]["seed"]
        for i, (env, saved) in enumerate(zip(self._envs, state["envs"], strict=True)):
            self._begin(i, saved["seed"])
            if saved["episode_rng"] is not None:
                env.unwrapped.np_random.bit_generator.state = saved["episode_rng"]
                self._begin(i, None)
            for action in saved["actions"]:
                self._advance(i, np.asarray(action, self.action_space.dtype if self._plain else np.float32)[()])
                if self._terminated[i] or self._truncated[i]:
                    break
            if (
                len(self._actions[i]) != len(saved["actions"])
                or self._terminated[i]
                or self._truncated[i]
                or self._checksum[i] != saved["checksum"]
                or self._rows[i].tobytes() != np.asarray(saved["observation"], self._observation.dtype).tobytes()
                or _rng_state(env) != saved["rng"]
            ):
                raise ConfigError(
                    f"task.env_id={self.env_id}: cannot be resumed exactly, because replaying the {len(saved['actions'])} "
                    f"actions of its open episode (copy {i}) did not reproduce the saved observations and rewards (it depends "
                    "on more than its np_random and its actions); start a new run."
                )

    def close(self) -> None:
        for env in self._envs:
            try:
                env.close()
            except Exception as error:  # the environment's own; all results are there by now
                warnings.warn(f"task.env_id={self.env_id}: close() failed ({type(error).__name__}: {error})", stacklevel=2)

    def _begin(self, i: int, seed: int | None) -> None:
        """Start an episode; with seed None, np_random keeps its state."""
        env = self._envs[i]
        self._episode_rng[i] = None if seed is not None else _rng_state(env)
        try:
            returned = env.reset(seed=seed)
        except SystemExit as error:
            raise self._exited("reset", error) from error
        try:
            observation, _ = returned
        except (TypeError, ValueError) as error:
            raise self._fault("reset() must return an observation and a dict", returned) from error
        self._write(i, observation)
        self._actions[i] = []
        self._checksum[i] = crc32(self._row_bytes[i])

    def _advance(self, i: int, action: Any) -> None:
        try:
            returned = self._envs[i].step(action if self._plain else self._unpacked(action))
        except SystemExit as error:
            raise self._exited("step", error) from error
        try:
            observation, reward, self._terminated[i], self._truncated[i], _ = returned
        except (TypeError, ValueError) as error:
            raise self._fault("step() must return observation, reward, terminated, truncated and a dict", returned) from error
        if not isinstance(reward, REAL):
            raise self._fault("the reward must be a number", reward)
        self._reward[i] = reward
        self._write(i, observation)
        self._actions[i].append(action)
        self._checksum[i] = crc32(self._reward_bytes[i], crc32(self._row_bytes[i], self._checksum[i]))

    def _write(self, i: int, observation: Any) -> None:
        """A Box: flattened and cast to float64, but for pixels; all other spaces as ``rgpo.control.spaces`` flattens them."""
        if self._shaped:
            if not (type(observation) is np.ndarray and observation.dtype is self._dtype and observation.shape == self._shape):
                observation = self._numbers(observation)
            self._shaped[i][...] = observation
            return
        try:
            rows, single = flatten(self._seen, observation)
        except ValueError as error:
            raise self._fault(f"an observation must be in {self.observation_space} ({first_line(error)})", observation) from error
        if not single:
            raise self._fault(f"an observation must be in {self.observation_space}", observation)
        self._rows[i][:] = rows[0]

    def _numbers(self, observation: Any) -> npt.NDArray[Any]:
        """An observation that is a list or the like, or of another type than the space, as an array.

        Raises: ValueError unless it has the shape and consists of numbers.
        """
        with suppress(ValueError):  # rows of different lengths
            found = np.asarray(observation)
            fits = found.shape == self._shape and found.dtype.kind in "fiub"
            if fits and (self._observation.dtype != np.uint8 or np.array_equal(found.astype(np.uint8), found)):
                return found
        what = "whole numbers from 0 to 255" if self._observation.dtype == np.uint8 else "numbers"
        raise self._fault(f"an observation must be {what} of shape {self._shape}", observation)

    def _fault(self, must: str, returned: Any) -> ValueError:
        array = isinstance(returned, np.ndarray)
        kind = f"an array of shape {returned.shape} and type {returned.dtype}" if array else repr(returned)[:80]
        return ValueError(f"task.env_id={self.env_id}: {must}, but the environment returned {kind}.")

    def _exited(self, call: str, error: SystemExit) -> RuntimeError:
        """An environment must not end the sweep that its run is part of."""
        return RuntimeError(f"task.env_id={self.env_id}: the environment called sys.exit({error.code!r}) in {call}().")

    def _unpacked(self, numbers: npt.NDArray[Any]) -> Any:
        """An action of a space with several parts from its numbers (A,)."""
        return row(self._acted, to_env(self._acted, np.asarray(numbers)[None]), 0)

    def _to_env(self, actions: npt.NDArray[Any]) -> list[Any]:
        """One action per environment, in fresh memory (an environment may keep or change its action)."""
        space = self.action_space
        if not self._plain:
            return list(np.array(actions, np.float32).reshape(len(actions), -1))
        if isinstance(space, spaces.Discrete):
            return list(np.asarray(actions) + space.start)  # numpy integers, the type that the space samples
        shaped = np.asarray(actions).reshape(len(actions), *space.shape)
        return list(np.minimum(np.maximum(shaped, space.low), space.high).astype(space.dtype, copy=False))


def _make(env_id: str, kwargs: dict[str, Any]) -> Any:
    """``gymnasium.make``.

    Raises: ConfigError if gymnasium cannot make it, with similar ids or gymnasium's own remedy.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the v4 environments are used on purpose
            return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.NamespaceNotFound as error:
        raise ConfigError(
            f"task.env_id={env_id}: not registered with gymnasium; install the package that provides it and prefix its "
            f"module with a colon (pip install ale-py, then ale_py:ALE/Pong-v5){_near(env_id)}."
        ) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError, TypeError) as error:
        given = f" with env_kwargs {kwargs}" if kwargs else ""
        raise ConfigError(f"task.env_id={env_id}: gymnasium cannot make it{given}; {str(error).rstrip('.')}.") from error
    except gymnasium.error.Error as error:
        raise ConfigError(f"task.env_id={env_id}: unknown to this gymnasium installation{_near(env_id)}.") from error
    except Exception as error:  # the environment's own
        why = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"task.env_id={env_id}: cannot be made, its constructor failed ({why}).") from error


def _near(env_id: str) -> str:
    """The remedy for an unknown id."""
    names = {name.lower(): name for name in gymnasium.registry}
    near = [names[key] for key in difflib.get_close_matches(env_id.lower(), names, n=3)]
    return f"; did you mean {' or '.join(near)}?" if near else "; gymnasium.pprint_registry() lists all ids"


def _rng_state(env: Any) -> dict[str, Any]:
    """State of the environment's np_random; empty if it is not a numpy Generator."""
    rng = env.unwrapped.np_random
    return dict(rng.bit_generator.state) if isinstance(rng, np.random.Generator) else {}
