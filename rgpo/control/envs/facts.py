"""Spaces, time limit and wrappers of an environment in words, for the banner."""

from __future__ import annotations

import sys
from importlib import metadata

import numpy as np
from gymnasium import spaces

from rgpo.control.envs.vector_env import VectorEnv

MAX_TEXT = 160  # characters of a space


def describe(env: VectorEnv, env_id: str) -> dict[str, str]:
    """Lines of the banner by name."""
    limit = "none" if env.time_limit is None else f"{env.time_limit:,} steps"
    return {
        "environment": f"{env_id}, time limit {limit}, {' > '.join(env.layers)}",
        "observation": space_in_words(env.observation_space),
        "action": space_in_words(env.action_space),
    }


def package_versions(env: VectorEnv) -> dict[str, str]:
    """The version of the installed package that defines the environment; {} for gymnasium's, rgpo's and users' own."""
    top = env.module.partition(".")[0]
    if top in ("gymnasium", "rgpo") or top in sys.stdlib_module_names:
        return {}
    return {name: metadata.version(name) for name in metadata.packages_distributions().get(top, [])}


def space_in_words(space: spaces.Space[object]) -> str:
    """A Box as shape, type and bounds; any other as gymnasium prints it."""
    if not isinstance(space, spaces.Box):
        text = str(space)
        return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return f"Box {space.shape} {space.dtype}, {_bounds(space)}"


def _bounds(space: spaces.Box) -> str:
    low, high = np.ravel(space.low), np.ravel(space.high)
    if not low.size:
        return "empty"
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return "unbounded"
    if (low == low[0]).all() and (high == high[0]).all():
        return f"from {low[0]:g} to {high[0]:g}"
    unbounded = int((~np.isfinite(low) | ~np.isfinite(high)).sum())
    return f"from {low.min():g} to {high.max():g}, other bounds in each place" + f", {unbounded} unbounded" * bool(unbounded)
