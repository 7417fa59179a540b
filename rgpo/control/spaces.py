"""Spaces of an environment as plain data, and observations as rows of numbers.

Observations are flattened as gymnasium.spaces.flatten does: a Box row by row, one-hot vectors for Discrete and for each number
of a MultiDiscrete, and the parts of a Dict or Tuple one after the other. ``rgpo.control.actions`` converts actions back.

Shapes: N observations, D observation numbers, A numbers of a Box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from rgpo.core.rollout import Array
from rgpo.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium import spaces

LARGEST_BOUND = 1e38  # larger bounds count as none
WRAP = "wrap the environment with task.wrappers so that it has other spaces"


class Space(TypedDict, total=False):
    """A gymnasium space. Box: bounds are one number for all or a flat list, null where there is none.

    Discrete has n and start; MultiDiscrete has counts and starts, flat; Dict has keys and parts; Tuple has parts.
    """

    type: str
    shape: list[int]
    dtype: str
    low: float | list[float | None] | None
    high: float | list[float | None] | None
    n: int
    start: int
    counts: list[int]
    starts: list[int]
    keys: list[str]
    parts: list[Space]


def describe(space: spaces.Space[object], name: str) -> Space:
    """A gymnasium space as data; name: of the part, in messages.

    Raises: ConfigError for a space, or a part of one, that is empty or not a fixed number of numbers, or whose keys are not text.
    """
    from gymnasium import spaces

    shape = [int(x) for x in space.shape or ()]
    if isinstance(space, spaces.Dict | spaces.Tuple) and not space.spaces:
        raise ConfigError(f"{name} is an empty {type(space).__name__}; leave it out, or give it parts.")
    match space:
        case spaces.Box():
            low, high = (_bounds(x) for x in (space.low, space.high))
            return {"type": "Box", "shape": shape, "dtype": str(space.dtype), "low": low, "high": high}
        case spaces.Discrete():
            return {"type": "Discrete", "dtype": str(space.dtype), "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            counts, starts = ([int(x) for x in np.ravel(values)] for values in (space.nvec, space.start))
            return {"type": "MultiDiscrete", "shape": shape, "dtype": str(space.dtype), "counts": counts, "starts": starts}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "shape": shape, "dtype": str(space.dtype)}
        case spaces.Dict():
            keys = [str(key) for key in space.spaces]
            if keys != list(space.spaces):
                raise ConfigError(f"{name} is a Dict whose keys are not texts ({', '.join(keys)}); name its parts by texts.")
            return {"type": "Dict", "keys": keys, "parts": [describe(part, f"{name}.{key}") for key, part in space.items()]}
        case spaces.Tuple():
            return {"type": "Tuple", "parts": [describe(part, f"{name}.{i}") for i, part in enumerate(space.spaces)]}
    kind = type(space).__name__
    remedy = "leave it out with a wrapper" if "." in name else WRAP
    raise ConfigError(f"{name} is a {kind}, which is no fixed number of numbers; {remedy}.")


def _bounds(values: Array) -> float | list[float | None] | None:
    """One number if all are equal; None where there is no bound, which is often written as the largest float32."""
    found = [x if abs(x) < LARGEST_BOUND else None for x in values.astype(np.float64).ravel().tolist()]
    return found[0] if len(set(found)) == 1 else found


def bounds(space: Space) -> tuple[Array, Array]:
    """Lower and upper bounds of a flattened Box, each (A,) or (1,) float64, infinite where there is none."""
    return _filled(space["low"], -np.inf), _filled(space["high"], np.inf)


def _filled(given: float | list[float | None] | None, missing: float) -> Array:
    values = given if isinstance(given, list) else [given]
    return np.array([missing if x is None else x for x in values], np.float64)


def observation_size(space: Space) -> int:
    """Number of observation numbers, D."""
    match space["type"]:
        case "Discrete":
            return space["n"]
        case "MultiDiscrete":
            return sum(space["counts"])
        case "Dict" | "Tuple":
            return sum(map(observation_size, space["parts"]))
    return math.prod(space["shape"])


def flatten(space: Space, observation: object, name: str = "observation") -> tuple[Array, bool]:
    """Flatten an observation, or a batch whose arrays have a leading axis N, to (N, D) float64; True for a single one.

    Raises: ValueError for an observation that is not in the space; bounds of a Box are not checked.
    """
    if space["type"] in ("Dict", "Tuple"):
        return _flatten_parts(space, observation, name)
    shape = tuple(space.get("shape", ()))
    found = np.asarray(observation)
    single = found.shape == shape
    if found.dtype.kind not in "fiub" or not (single or (found.ndim and found.shape[1:] == shape)):
        is_array = f"an array of shape {found.shape} and type {found.dtype}"
        batch = ", ".join(["N", *map(str, shape)])
        raise ValueError(f"{name}: is {is_array}; give one of shape {shape}, or a batch ({batch}).")
    flat = found.reshape(1 if single else len(found), math.prod(shape))
    if space["type"] == "Box":
        return flat.astype(np.float64), single
    if space["type"] == "MultiBinary":
        if not ((flat == 0) | (flat == 1)).all():
            raise ValueError(f"{name}: must consist of 0 and 1.")
        return flat.astype(np.float64), single
    counts, starts = integers(space)
    place = flat.astype(np.int64) - starts
    if not ((place >= 0) & (place < counts) & (flat == place + starts)).all():
        last = (starts + counts - 1).tolist()
        span = f"{starts[0]} to {last[0]}" if space["type"] == "Discrete" else f"{starts.tolist()} to {last}"
        raise ValueError(f"{name}: must be from {span}.")
    hot = np.zeros((len(flat), int(counts.sum())))
    np.put_along_axis(hot, place + np.cumsum(counts) - counts, 1.0, axis=1)
    return hot, single


def _flatten_parts(space: Space, observation: object, name: str) -> tuple[Array, bool]:
    parts: dict[object, object] = {}
    keys = part_names(space)
    if space["type"] == "Dict" and isinstance(observation, Mapping):
        parts = {str(key): value for key, value in observation.items()}
    elif space["type"] == "Tuple" and isinstance(observation, tuple | list):
        parts = dict(zip(map(str, range(len(observation))), observation, strict=True))
    if set(parts) != set(keys):
        what = f"a dict with {', '.join(keys)}" if space["type"] == "Dict" else f"a tuple of {len(keys)}"
        raise ValueError(f"{name}: is {type(observation).__name__} {str(observation)[:80]}; give {what}.")
    pairs = [flatten(part, parts[key], f"{name}.{key}") for key, part in zip(keys, space["parts"], strict=True)]
    counts = [len(rows) for rows, _ in pairs]
    if len(set(counts)) > 1 or len({single for _, single in pairs}) > 1:
        raise ValueError(f"{name}: has parts of {', '.join(map(str, counts))} rows; give as many of each.")
    return np.concatenate([rows for rows, _ in pairs], 1), pairs[0][1]


def part_names(space: Space) -> list[str]:
    """Names of the parts of a Dict or Tuple."""
    return space["keys"] if space["type"] == "Dict" else [str(i) for i in range(len(space["parts"]))]


def integers(space: Space) -> tuple[Array, Array]:
    """Number of values and first value of each number of a space of integers."""
    if space["type"] == "Discrete":
        return np.array([space["n"]]), np.array([space["start"]])
    if space["type"] == "MultiDiscrete":
        return np.array(space["counts"]), np.array(space["starts"])
    low, high = (np.broadcast_to(x, (math.prod(space["shape"]),)) for x in bounds(space))
    return (high - low + 1).astype(np.int64), low.astype(np.int64)
