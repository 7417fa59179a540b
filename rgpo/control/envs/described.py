"""One environment as used in training: inside its wrappers, and with its spaces as data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from gymnasium import spaces

from rgpo.control.actions import heads
from rgpo.control.envs.vector_env import Env, VectorEnv, Wrap
from rgpo.control.spaces import WRAP, Space, describe, observation_size
from rgpo.errors import ConfigError, blamed, described, printable, require

MOST_NUMBERS = 10_000_000  # limit on the numbers of one observation, and on the network's outputs for one action


def wrapped(env: Env, wrappers: Sequence[Wrap]) -> Env:
    """The environment in its wrappers, the first one inside.

    Raises: ConfigError if a wrapper refuses it.
    """
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def is_pixels(space: spaces.Space[object]) -> bool:
    """True for a Box of bytes, whose observations are stored as bytes."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8


def observation_shape(env: VectorEnv) -> tuple[int, ...]:
    """The shape of a Box; (D,) for other spaces, which are flattened."""
    space = env.observation_space
    return tuple(space.shape) if isinstance(space, spaces.Box) else (env.observation_size,)


def spaces_of(env_id: str, env: Env) -> tuple[spaces.Space[object], spaces.Space[object]]:
    """The spaces of observations and of actions.

    Raises: ConfigError for an environment without one of them.
    """
    return _space(env_id, env, "observation_space"), _space(env_id, env, "action_space")


def _space(env_id: str, env: Env, name: str) -> spaces.Space[object]:
    about = f"task.env_id={env_id}: its {name}"
    with blamed(lambda error: ConfigError(f"{about} cannot be read ({described(error)}); set it in the constructor.")):
        space = getattr(env, name, None)  # perhaps a property
    if not isinstance(space, spaces.Space):
        what = f"it has no {name}" if space is None else f"its {name} is {printable(str(space), 80)}, no space of gymnasium"
        raise ConfigError(f"task.env_id={env_id}: {what}; set it to one of gymnasium.spaces.")
    return space


def describe_spaces(env_id: str, observation: spaces.Space[object], action: spaces.Space[object]) -> tuple[Space, Space]:
    """Both spaces as data.

    Raises: ConfigError for a space that is not a fixed, positive number of numbers.
    """
    try:
        acted = describe(action, "action")
        empty = not sum(head.columns for head in heads(acted, "action"))
        seen = describe(observation, "observation")
    except ConfigError as error:
        raise ConfigError(f"task.env_id={env_id}: its {str(error).rstrip('.')}{_without_parts(observation)}.") from error
    for what, size in (("observation", observation_size(seen)), ("action", sum(head.size for head in heads(acted)))):
        remedy = f"makes {size:,} numbers of the network, over {MOST_NUMBERS:,}; {WRAP}"
        require(size <= MOST_NUMBERS, "task.env_id", env_id, f"its {what} space {remedy}.")
    if empty or not observation_size(seen):
        raise ConfigError(
            f"task.env_id={env_id}: its {'action' if empty else 'observation'} space has no numbers; give it a space with some."
        )
    return seen, acted


def _without_parts(space: spaces.Space[object]) -> str:
    """The wrapper that leaves out the parts of a Dict that are not supported; "" if that is no remedy."""
    if not isinstance(space, spaces.Dict):
        return ""
    keys = []
    for key, part in space.items():
        with suppress(ConfigError):
            describe(part, "")
            keys.append(str(key))
    if not keys or len(keys) == len(space):
        return ""
    return f", as task.wrappers=[{{_target_:gymnasium.wrappers.FilterObservation,filter_keys:[{','.join(keys)}]}}] does"
