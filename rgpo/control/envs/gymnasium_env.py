"""Any gymnasium environment as a ``VectorEnv``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import cast

import gymnasium
import numpy as np
from gymnasium import spaces

from rgpo.control.actions import heads, row, to_env
from rgpo.control.envs import registration
from rgpo.control.envs.described import describe_spaces, is_pixels, spaces_of, wrapped
from rgpo.control.envs.replay import (
    EARLIER,
    NOT_REPRODUCED,
    Recording,
    RngState,
    SavedEpisode,
    from_plain,
    plain,
    rng_state,
    same_bits,
    set_rng_state,
)
from rgpo.control.envs.vector_env import Env, Floats, Restart, SavedEnvs, Step, Wrap, check_saved
from rgpo.control.spaces import flatten, observation_size
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, EnvironmentFault, described, first_line, is_own, printable

REAL = (float, int, np.floating, np.integer, np.bool_)
FLAGS = (bool, np.bool_)
STEP_RETURNS = "step() must return observation, reward, terminated, truncated and a dict"


class GymnasiumVector:
    """E copies of a gymnasium environment in a plain loop.

    gymnasium cannot save an environment, so a state holds a recording of each open episode, which is replayed on loading; if that
    does not reproduce the episode, a fresh one begins.
    """

    def __init__(
        self, env_id: str, num_envs: int, wrappers: Sequence[Wrap] = (), kwargs: Mapping[str, object] | None = None
    ) -> None:
        self.env_id = env_id
        self.num_envs = num_envs
        around = f" with task.wrappers=[{', '.join(map(repr, wrappers))}]" if wrappers else ""
        self._where = f"task.env_id={env_id}{around}"
        self._envs = [wrapped(registration.make(env_id, kwargs or {}), wrappers) for _ in range(num_envs)]
        self.time_limit = getattr(self._envs[0].spec, "max_episode_steps", None)
        self.module = type(self._envs[0].unwrapped).__module__
        self.layers = tuple(type(layer).__name__ for layer in _layers(self._envs[0]))
        self.observation_space, self.action_space = spaces_of(env_id, self._envs[0])
        self._seen, self._acted = describe_spaces(env_id, self.observation_space, self.action_space)
        # a single index or a Box of floats: converted for all copies at once
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

        self._recordings = [Recording() for _ in range(num_envs)]

    def reset(self, seed: int) -> Floats:
        for i in range(self.num_envs):
            self._begin(i, int(seed) + i)
        return self._observation

    def step(self, actions: Array) -> Step:
        kept = np.array(actions)  # a copy: an environment may keep or change its action
        for i, action in enumerate(self._to_env(actions)):
            self._advance(i, action)
            self._record(i, kept[i])
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

    def state_dict(self) -> SavedEnvs:
        envs: list[SavedEpisode] = []
        for i, env in enumerate(self._envs):
            rng = rng_state(env)
            now = rng and plain(rng)
            envs.append({**self._recordings[i].state_dict(), "rng_now": now, "observation": self._rows[i].tolist()})
        return {"backend": "gymnasium", "env_id": self.env_id, "envs": envs}

    def load_state_dict(self, state: SavedEnvs) -> list[Restart]:
        check_saved(state, "gymnasium", self.env_id, self.num_envs)
        restarts = []
        for i, saved in enumerate(cast(list[SavedEpisode], state["envs"])):
            size, where = len(saved["observation"]), f"task.env_id={self.env_id}: its observations have {self.observation_size}"
            if size != self.observation_size:
                raise ConfigError(f"{where} numbers, those of the checkpoint {size}; restore the environment, or use force=true.")
            if why := self._replay(i, saved):
                recording = self._recordings[i]
                recording.seed, recording.num_steps = saved["seed"], saved.get("num_steps", 0)
                self._begin(i, recording.fresh_seed())
                restarts.append(Restart(i, self._rows[i].copy(), why))
        return restarts

    def _replay(self, i: int, saved: SavedEpisode) -> str:
        """Replay a saved open episode; returns the reason if that does not reproduce it, else ""."""
        if "rng_now" not in saved:
            return EARLIER
        if saved["obstacle"]:
            return str(saved["obstacle"])
        actions = np.array(saved["actions"], saved["dtype"])
        self._terminated[i] = self._truncated[i] = False
        try:
            self._begin(i, saved["seed"])
            if not saved["seeded"]:
                set_rng_state(self._envs[i], cast(RngState, from_plain(saved["rng"])))
                self._begin(i, None)
            for action in actions:
                if self._terminated[i] or self._truncated[i]:
                    return NOT_REPRODUCED
                self._advance(i, self._to_env(action[None])[0])
                self._record(i, action)
        except (EnvironmentFault, TypeError, ValueError):  # e.g. something is missing, or the generator is another
            return NOT_REPRODUCED
        recording, rng = self._recordings[i], rng_state(self._envs[i])
        recording.num_steps = saved["num_steps"]
        agree = recording.checksum == saved["checksum"] and (rng and plain(rng)) == saved["rng_now"]
        agree = agree and same_bits(self._rows[i], np.array(saved["observation"], self._observation.dtype))
        return "" if agree and not (self._terminated[i] or self._truncated[i]) else NOT_REPRODUCED

    def episodes(self) -> list[dict[str, object]]:
        """State, number of steps and generator of each open episode, for environments with an attribute `state`."""
        return [
            {"state": env.unwrapped.state, "elapsed": len(recording.actions or []), "rng": rng_state(env)}
            for env, recording in zip(self._envs, self._recordings, strict=True)
        ]

    def use_threads(self, num_threads: int) -> None:
        """No-op: because of the GIL, only one copy can step at a time."""

    def close(self) -> None:
        for env in self._envs:
            try:
                env.close()
            except BaseException as error:  # the environment's own; all results exist by now
                if is_own(error):
                    raise
                what = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"failed ({described(error)})"
                warnings.warn(f"task.env_id={self.env_id}: close() {what}", stacklevel=2)

    def _begin(self, i: int, seed: int | None) -> None:
        """Start an episode; with seed None, np_random keeps its state."""
        env = self._envs[i]
        rng = rng_state(env) if seed is None else None
        try:
            returned = env.reset(seed=seed)
        except BaseException as error:
            if is_own(error):
                raise
            raise self._raised("reset", error) from error
        if not (isinstance(returned, tuple | list) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise self._fault("reset() must return an observation and a dict", returned)
        self._write(i, returned[0])
        self._recordings[i].begin(seed, rng, self._row_bytes[i])

    def _advance(self, i: int, action: object) -> None:
        try:
            returned = self._envs[i].step(action)
        except BaseException as error:
            if is_own(error):
                raise
            raise self._raised("step", error) from error
        try:
            observation, reward, terminated, truncated, info = returned
        except (TypeError, ValueError) as error:
            raise self._fault(STEP_RETURNS, returned) from error
        if not isinstance(info, dict):
            raise self._fault(STEP_RETURNS, returned)
        self._terminated[i] = terminated if isinstance(terminated, FLAGS) else self._flag("terminated", terminated)
        self._truncated[i] = truncated if isinstance(truncated, FLAGS) else self._flag("truncated", truncated)
        try:
            self._reward[i] = reward if isinstance(reward, REAL) else self._number(reward)
        except OverflowError as error:
            raise self._fault("the reward must be a number that fits into 64 bits", reward) from error
        self._write(i, observation)

    def _record(self, i: int, action: Array) -> None:
        self._recordings[i].add(action, self._reward_bytes[i], self._row_bytes[i])

    def _number(self, reward: object) -> float:
        """Convert a reward that is a scalar of another library.

        Raises: EnvironmentFault for any other object.
        """
        with suppress(Exception):  # of the other library
            found = np.asarray(reward)
            if found.shape == () and found.dtype.kind in "fiub":
                return float(found)
        raise self._fault("the reward must be a number", reward)

    def _flag(self, name: str, flag: object) -> bool:
        """Raises: EnvironmentFault unless a flag is true, false, 0 or 1."""
        with suppress(Exception):
            found = np.asarray(flag)
            if found.shape == () and found.dtype.kind in "iub" and found in (0, 1):
                return bool(found)
        raise self._fault(f"{name} must be true or false", flag)

    def _write(self, i: int, observation: object) -> None:
        """Store an observation, flattened: a Box as float64 (pixels as uint8), others by ``rgpo.control.spaces.flatten``."""
        if self._shaped:
            if type(observation) is np.ndarray and observation.dtype is self._dtype and observation.shape == self._shape:
                self._shaped[i][...] = observation
            else:
                self._shaped[i][...] = self._numbers(observation)
            return
        try:
            rows, single = flatten(self._seen, observation)
        except ValueError as error:
            raise self._fault(f"an observation must be in {self.observation_space} ({first_line(error)})", observation) from error
        if not single:
            raise self._fault(f"an observation must be in {self.observation_space}", observation)
        self._rows[i][:] = rows[0]

    def _numbers(self, observation: object) -> Array:
        """Convert an observation that is not an array, or has another dtype than its space, to an array.

        Raises: EnvironmentFault unless it has the shape of the space and consists of numbers.
        """
        with suppress(ValueError):  # rows of different lengths
            found = np.asarray(observation)
            fits = found.shape == self._shape and found.dtype.kind in "fiub"
            if fits and (self._observation.dtype != np.uint8 or np.array_equal(found.astype(np.uint8), found)):
                return found
        what = "whole numbers from 0 to 255" if self._observation.dtype == np.uint8 else "numbers"
        raise self._fault(f"an observation must be {what} of shape {self._shape}", observation)

    def _fault(self, must: str, returned: object) -> EnvironmentFault:
        if isinstance(returned, np.ndarray):
            kind = f"an array of shape {returned.shape} and type {returned.dtype}"
        elif isinstance(returned, tuple | list) and "dict" in must:
            last = f", the last of which is {type(returned[-1]).__name__}" if returned else ""
            kind = f"{len(returned)} values{last}"
        else:
            kind = printable(_repr(returned), 80)
        return EnvironmentFault(f"{self._where}: {must}, but the environment returned {kind}.")

    def _raised(self, call: str, error: BaseException) -> EnvironmentFault:
        """The fault for a call that raised an error, SystemExit included, as sys.exit() must not end a whole sweep."""
        what = f"raised {described(error)}"
        if isinstance(error, SystemExit):
            what = f"called sys.exit({error.code!r})"
        return EnvironmentFault(f"{self._where}: the environment {what} in {call}().")

    def _to_env(self, actions: Array) -> Sequence[object]:
        """One action per environment, in fresh memory (an environment may keep or change its action)."""
        space = self.action_space
        if not self._plain:
            batch = to_env(self._acted, np.asarray(actions).reshape(len(actions), -1))
            return [row(self._acted, batch, i) for i in range(len(actions))]
        if isinstance(space, spaces.Discrete):
            return list(np.asarray(actions, space.dtype) + space.start)  # numpy integers, the type that the space samples
        shaped = np.asarray(actions).reshape(len(actions), *space.shape)
        found = np.minimum(np.maximum(shaped, space.low), space.high).astype(space.dtype, copy=False)
        return list(found) if space.shape else [np.array(x) for x in found]


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # the environment's own
        return f"a {type(value).__name__}"


def _layers(env: Env | None) -> Iterator[Env]:
    """The environment and what it wraps, from the outside in."""
    while env is not None:
        yield env
        env = env.env if isinstance(env, gymnasium.Wrapper) else None
