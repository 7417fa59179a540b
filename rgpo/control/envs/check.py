"""Try out an environment before training: two short episodes with one seed, every value against its space, one resume.

An environment that cannot be trained on is rejected; anything else that may surprise is a finding, shown in the run's banner.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from rgpo.control.envs.gymnasium_env import GymnasiumVector
from rgpo.control.envs.registration import undisturbed
from rgpo.control.envs.replay import same_bits
from rgpo.control.envs.vector_env import Floats, VectorEnv
from rgpo.errors import ConfigError, EnvironmentFault

SEED, NUM_STEPS, MAX_S = 7, 16, 2.0
UNREPEATABLE = "runs cannot be repeated, and resumed ones begin their episodes anew"
SEED_REMEDY = "call super().reset(seed=seed) and draw from self.np_random alone"
_found: dict[str, tuple[str, ...]] = {}


class Moment(NamedTuple):
    """Numbers after a reset or a step."""

    observation: Floats
    reward: float
    ended: bool


class Witness(gymnasium.Wrapper):
    """Wrapper that passes everything through and reports the first observation that is not in its space."""

    odd = ""

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> object:
        """Reset as gymnasium's vector environments do, without options."""
        returned = self.env.reset(seed=seed)
        if isinstance(returned, tuple) and returned:
            self._look(returned[0], "reset()")
        return returned

    def step(self, action: object) -> object:
        """Step, and check the observation."""
        returned = self.env.step(action)
        if isinstance(returned, tuple) and returned:
            self._look(returned[0], "step()")
        return returned

    def _look(self, observation: object, call: str) -> None:
        if not self.odd and (why := mismatch(self.env.observation_space, observation)):
            self.odd = f"an observation of {call} {why}"


def findings(key: str) -> tuple[str, ...]:
    """The findings of ``try_out`` about an environment in this process."""
    return _found.get(key, ())


def try_out(key: str, make: Callable[[int], VectorEnv]) -> None:
    """Play two episodes of the environment that make(1) returns; ``findings(key)`` then lists anything that may surprise.

    Raises: ConfigError or EnvironmentFault for an environment that cannot be made, breaks its interface, raises, or returns
    numbers that are not finite.
    """
    env = make(1)
    try:
        if isinstance(env, GymnasiumVector):  # MuJoCo stepped directly is our own
            with undisturbed():
                found = _findings(env, make)
            _found[key] = tuple(f"{env.env_id}: {text}" for text in found)
    finally:
        env.close()


def _findings(env: GymnasiumVector, make: Callable[[int], VectorEnv]) -> list[str]:
    witness = env._envs[0] = Witness(env._envs[0])
    env.action_space.seed(SEED)
    first = _play(env, [env.action_space.sample() for _ in range(NUM_STEPS)])
    env.action_space.seed(SEED)
    actions = [env.action_space.sample() for _ in range(NUM_STEPS)][: len(first) - 1]
    found = [witness.odd] if witness.odd else []
    second, complaints = _play_checked(env, witness, actions)
    found += complaints
    if not _same(first[:1], second[:1]):
        return [
            *found,
            f"the seed does not reach the environment (two resets with one seed differ): {UNREPEATABLE}; {SEED_REMEDY}",
        ]
    if not _same(first, second):
        step = next(t for t in range(len(first)) if not _same(first[t : t + 1], second[t : t + 1]))
        what = f"two episodes with one seed and the same actions differ after step {step}"
        return [
            *found,
            f"{what} (numbers that the seed does not reach, or that earlier episodes left): {UNREPEATABLE}; {SEED_REMEDY}",
        ]
    return found + _resume(env, make, actions)


def _play(env: GymnasiumVector, actions: list[object], seed: int | None = SEED) -> list[Moment]:
    """Play an episode until it ends, the actions run out or MAX_S seconds have passed.

    Raises: EnvironmentFault if the environment breaks its interface, raises, or returns numbers that are not finite.
    """
    begun = time.monotonic()
    env._begin(0, seed)
    moments = [_moment(env, 0.0, False)]
    for action in actions:
        if moments[-1].ended or time.monotonic() - begun > MAX_S:
            break
        env._advance(0, action)
        moments.append(_moment(env, float(env._reward[0]), bool(env._terminated[0] or env._truncated[0])))
    return moments


def _moment(env: GymnasiumVector, reward: float, ended: bool) -> Moment:
    """Raises: EnvironmentFault if a number is not finite, unless it is the observation after a termination."""
    observation = env._rows[0].copy()
    used = not (ended and env._terminated[0])
    for name, ok in (("reward", np.isfinite(reward)), ("observation", np.isfinite(observation).all() or not used)):
        if not ok:
            raise EnvironmentFault(f"task.env_id={env.env_id}: the {name} is NaN or infinite within the first {NUM_STEPS} steps.")
    return Moment(observation, reward, ended)


def _play_checked(env: GymnasiumVector, witness: Witness, actions: list[object]) -> tuple[list[Moment], list[str]]:
    """Play the episode again under gymnasium's own checker; returns its complaints, except those about observations and infos."""
    env._envs[0] = gymnasium.wrappers.PassiveEnvChecker(witness.env)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            moments = _play(env, actions)
    finally:
        env._envs[0] = witness.env
    texts = dict.fromkeys(re.sub(r"\x1b\[\d*m(WARN: )?", "", str(w.message)).rstrip(".") for w in caught if _is_gymnasiums(w))
    skipped = ("The obs returned by", "The observations returned by", "The infos returned by")  # see Witness; we keep copies
    return moments, [f"gymnasium's checker: {text}" for text in texts if not text.startswith(skipped)]


def _is_gymnasiums(warning: warnings.WarningMessage) -> bool:
    return "gymnasium" in Path(warning.filename).parts


def _resume(env: GymnasiumVector, make: Callable[[int], VectorEnv], actions: list[object]) -> list[str]:
    """A finding if an episode cannot be restored after two others, which have advanced the random generators."""
    _play(env, actions, None)
    env._begin(0, None)
    try:
        again = make(1)
    except (ConfigError, EnvironmentFault) as error:
        return [f"a second copy beside the first cannot be made, which evaluation needs ({str(error).rstrip('.')})"]
    try:
        restarts = again.load_state_dict(env.state_dict())
    finally:
        again.close()
    return [f"resumed runs begin their episodes anew, not bit for bit: {restarts[0].why}"] if restarts else []


def _same(a: list[Moment], b: list[Moment]) -> bool:
    return len(a) == len(b) and all(same_bits(x.observation, y.observation) and x[1:] == y[1:] for x, y in zip(a, b, strict=True))


def mismatch(space: spaces.Space[object], observation: object) -> str:
    """A clause about an observation that is not in its space; "" if it is."""
    if not isinstance(space, spaces.Box):
        return "" if space.contains(observation) else f"is not in {str(space)[:200]}"
    found = np.asarray(observation)
    if found.shape != space.shape or found.dtype.kind not in "fiub":
        return ""  # rejected elsewhere, with its own message
    if found.dtype != space.dtype:
        return f"has type {found.dtype}, its space has {space.dtype}"
    outside = np.argwhere((found < space.low) | (found > space.high))
    if not len(outside):
        return ""
    place = tuple(outside[0].tolist())
    return f"is outside of its space: {found[place]:g} at {list(place)} is not in [{space.low[place]:g}, {space.high[place]:g}]"
