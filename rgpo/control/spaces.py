"""Spaces of an environment as plain data: observations as rows of numbers, rows of action numbers as the environment's actions.

Observations are flattened as gymnasium.spaces.flatten does: a Box row by row, one-hot vectors for Discrete and for each number
of a MultiDiscrete, and the parts of a Dict or Tuple one after the other. An action has one factor per part: independent
categoricals for Discrete, MultiDiscrete and Boxes of integers, Gaussians for Boxes of floats, Bernoullis for MultiBinary.

Shapes: N observations or actions, D observation numbers, A action numbers, O outputs of the policy's network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypedDict

import numpy as np

from rgpo.core.rollout import Array
from rgpo.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium import spaces

LARGEST_BOUND = 1e38  # above it there is none
LARGEST_FACTOR = 1024  # values of one number of a Box of integers, each of which is an output of the network
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


EnvAction: TypeAlias = "Array | dict[str, EnvAction] | tuple[EnvAction, ...]"  # as an environment takes it


class Head(NamedTuple):
    """One factor of the distribution of actions."""

    kind: str  # categorical, gaussian or bernoulli
    size: int  # outputs of the network: logits or means

    @property
    def columns(self) -> int:
        """Numbers of an action: the index of a categorical, else one per output."""
        return 1 if self.kind == "categorical" else self.size


def describe(space: spaces.Space[object], name: str) -> Space:
    """A gymnasium space as data; name is that of the part in messages.

    Raises: ConfigError for a space, or a part of one, that has no fixed number of numbers.
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
    """One number if all are equal; None where there is no bound, which the largest number of float32 is often written for."""
    found = [x if abs(x) < LARGEST_BOUND else None for x in values.astype(np.float64).ravel().tolist()]
    return found[0] if len(set(found)) == 1 else found


def bounds(space: Space) -> tuple[Array, Array]:
    """Lower and upper bounds of a flattened Box, each (A,) or (1,) float64, infinite where there is none."""
    return _filled(space["low"], -np.inf), _filled(space["high"], np.inf)


def _filled(given: float | list[float | None] | None, missing: float) -> Array:
    values = given if isinstance(given, list) else [given]
    return np.array([missing if x is None else x for x in values], np.float64)


def observation_size(space: Space) -> int:
    """D."""
    match space["type"]:
        case "Discrete":
            return space["n"]
        case "MultiDiscrete":
            return sum(space["counts"])
        case "Dict" | "Tuple":
            return sum(map(observation_size, space["parts"]))
    return math.prod(space["shape"])


def flatten(space: Space, observation: object, name: str = "observation") -> tuple[Array, bool]:
    """An observation, or a batch with N in front of every array, as (N, D) float64, and whether it was a single one.

    Raises: ValueError for an observation that is not in the space, but for bounds of a Box.
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
    counts, starts = _discrete(space)
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


def _discrete(space: Space) -> tuple[Array, Array]:
    """Number of values and first value of each number of a space of integers."""
    if space["type"] == "Discrete":
        return np.array([space["n"]]), np.array([space["start"]])
    if space["type"] == "MultiDiscrete":
        return np.array(space["counts"]), np.array(space["starts"])
    low, high = (np.broadcast_to(x, (math.prod(space["shape"]),)) for x in bounds(space))
    return (high - low + 1).astype(np.int64), low.astype(np.int64)


def heads(space: Space, name: str = "its action space") -> tuple[Head, ...]:
    """The factors of the distribution over a space of actions.

    Raises: ConfigError for integers without bounds, or with very many values.
    """
    match space["type"]:
        case "Dict" | "Tuple":
            parts = zip(part_names(space), space["parts"], strict=True)
            return tuple(head for key, part in parts for head in heads(part, f"{name}.{key}"))
        case "MultiBinary":
            return (Head("bernoulli", math.prod(space["shape"])),)
        case "Box" if np.dtype(space["dtype"]).kind == "f":
            return (Head("gaussian", math.prod(space["shape"])),)
        case "Box":
            spread = max((high - low for low, high in zip(*bounds(space), strict=False)), default=0.0)
            if not spread < LARGEST_FACTOR:
                raise ConfigError(f"{name} is a Box of integers with over {LARGEST_FACTOR:,} values; {WRAP}.")
    return tuple(Head("categorical", int(n)) for n in _discrete(space)[0])


def to_env(space: Space, action: Array) -> EnvAction:
    """Action numbers (N, A), or (N,) indices of one categorical, as actions with N in front of every array.

    Indices count from the start of their space; numbers of a Box are clipped to its bounds.
    """
    if space["type"] in ("Dict", "Tuple"):
        ends = np.cumsum([sum(head.columns for head in heads(part)) for part in space["parts"]])
        pieces = np.split(action, ends[:-1], axis=1)
        parts: list[EnvAction] = [to_env(part, piece) for part, piece in zip(space["parts"], pieces, strict=True)]
        return dict(zip(space["keys"], parts, strict=True)) if space["type"] == "Dict" else tuple(parts)
    if space["type"] == "Discrete":
        return (action.reshape(len(action)).astype(np.int64, copy=False) + space["start"]).astype(space.get("dtype", "int64"))
    shape = (len(action), *space["shape"])
    if space["type"] == "Box" and np.dtype(space["dtype"]).kind == "f":
        low, high = bounds(space)
        clipped = np.minimum(np.maximum(action, low), high)
        return clipped.astype(space["dtype"], copy=False).reshape(shape)
    if space["type"] != "MultiBinary":
        action = action + _discrete(space)[1]
    return action.astype(space["dtype"]).reshape(shape)


def row(space: Space, batch: EnvAction, i: int) -> EnvAction:
    """Entry i of the result of ``to_env``, in memory of its own."""
    if isinstance(batch, dict):
        return {key: row(part, batch[key], i) for key, part in zip(space["keys"], space["parts"], strict=True)}
    if isinstance(batch, tuple):
        return tuple(row(part, x, i) for part, x in zip(space["parts"], batch, strict=True))
    found: Array = batch[i]  # a number of a Discrete space, which has no copy of its own
    return found if space["type"] == "Discrete" else found.copy()


class Rescale:
    """Gaussian action numbers from [-1, 1] to the bounds of their Box, where both are finite; all others stay as they are."""

    def __init__(self, space: Space) -> None:
        low, high = column_bounds(space)
        finite = np.isfinite(high - low)
        low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
        self.middle, self.radius = ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)
        self.limit = np.where(finite, 1.0, np.inf).astype(np.float32)

    def __call__(self, action: Array) -> Array:
        """middle + radius clip(a, -1, 1), (N, A) -> (N, A)."""
        scaled: Array = self.middle + self.radius * np.clip(action, -self.limit, self.limit)
        return scaled


def column_bounds(space: Space) -> tuple[Array, Array]:
    """Bounds (A,) of the action numbers of Boxes of floats; infinite for all others."""
    if space["type"] in ("Dict", "Tuple"):
        low, high = zip(*map(column_bounds, space["parts"]), strict=True)
        return np.concatenate(low), np.concatenate(high)
    size = sum(head.columns for head in heads(space))
    if heads(space)[:1] != (Head("gaussian", size),):
        return np.full(size, -np.inf), np.full(size, np.inf)
    ends = bounds(space)
    return np.broadcast_to(ends[0], (size,)), np.broadcast_to(ends[1], (size,))


def column_starts(space: Space) -> Array:
    """First value (A,) int64 of each action number that is an index; 0 for all others."""
    if space["type"] in ("Dict", "Tuple"):
        return np.concatenate([column_starts(part) for part in space["parts"]])
    own = heads(space)
    if all(head.kind == "categorical" for head in own):
        return _discrete(space)[1].astype(np.int64)
    return np.zeros(sum(head.columns for head in own), np.int64)


def draw_noise(factors: Sequence[Head], shape: tuple[int, ...], std: Array | None, rng: np.random.Generator) -> Array:
    """Noise (*shape, O) float32 that makes outputs a draw: Gumbel, std (numbers of Gaussians,) times Gaussian, or logistic."""
    parts, begin = [], 0
    for kind, size in factors:
        if kind == "categorical":
            part = rng.gumbel(size=(*shape, size)).astype(np.float32)
        elif kind == "bernoulli":
            part = rng.logistic(size=(*shape, size)).astype(np.float32)
        else:
            assert std is not None
            part = std[begin : begin + size] * rng.standard_normal((*shape, size)).astype(np.float32)
            begin += size
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def choose(factors: Sequence[Head], output: Array) -> Array:
    """Action numbers (N, A) of outputs (N, O) with noise added, or without it their mode; (N,) int64 for one categorical."""
    if len(factors) == 1:
        kind = factors[0].kind
        chosen: Array = output.argmax(-1) if kind == "categorical" else output if kind == "gaussian" else output > 0
        return chosen.astype(np.float32) if kind == "bernoulli" else chosen
    pieces = np.split(output, np.cumsum([head.size for head in factors])[:-1], axis=-1)
    columns = []
    for head, piece in zip(factors, pieces, strict=True):
        found = piece.argmax(-1)[:, None] if head.kind == "categorical" else piece if head.kind == "gaussian" else piece > 0
        columns.append(found.astype(np.float32))
    return np.concatenate(columns, -1)
