"""Actions as rows of numbers: the factors of their distribution, sampling, and conversion to the environment's actions.

An action has one factor per part of its space: independent categoricals for Discrete, MultiDiscrete and Boxes of integers,
Gaussians for Boxes of floats, Bernoullis for MultiBinary.

Shapes: N actions, A action numbers, O outputs of the policy's network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from rgpo.control.spaces import WRAP, Space, bounds, integers, part_names
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError

LARGEST_FACTOR = 1024  # limit on the values of a number in a Box of integers, as each value is an output of the network

EnvAction: TypeAlias = "Array | dict[str, EnvAction] | tuple[EnvAction, ...]"  # as an environment takes it


class Head(NamedTuple):
    """One factor of the distribution of actions."""

    kind: str  # categorical, gaussian or bernoulli
    size: int  # outputs of the network: logits or means

    @property
    def columns(self) -> int:
        """Number of action numbers: one index for a categorical, else one per output."""
        return 1 if self.kind == "categorical" else self.size


def heads(space: Space, name: str = "its action space") -> tuple[Head, ...]:
    """The factors of the distribution over a space of actions.

    Raises: ConfigError for integers without bounds, or with more than LARGEST_FACTOR values.
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
    return tuple(Head("categorical", int(n)) for n in integers(space)[0])


def to_env(space: Space, action: Array) -> EnvAction:
    """Convert action numbers (N, A), or indices (N,) of a single categorical, to actions whose arrays have a leading axis N.

    Indices become values counted from the start of their space; numbers of a Box of floats are clipped to its bounds.
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
        action = action + integers(space)[1]
    return action.astype(space["dtype"]).reshape(shape)


def row(space: Space, batch: EnvAction, i: int) -> EnvAction:
    """A copy of entry i of the result of ``to_env``."""
    if isinstance(batch, dict):
        return {key: row(part, batch[key], i) for key, part in zip(space["keys"], space["parts"], strict=True)}
    if isinstance(batch, tuple):
        return tuple(row(part, x, i) for part, x in zip(space["parts"], batch, strict=True))
    found: Array = batch[i]  # a scalar for a Discrete space, which needs no copy
    return found if space["type"] == "Discrete" else np.array(found)  # also if the shape is ()


class Rescale:
    """Map Gaussian action numbers from [-1, 1] to the bounds of their Box, if both are finite; leave all others unchanged."""

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
        return integers(space)[1].astype(np.int64)
    return np.zeros(sum(head.columns for head in own), np.int64)


def draw_noise(factors: Sequence[Head], shape: tuple[int, ...], std: Array | None, rng: np.random.Generator) -> Array:
    """Noise (*shape, O) float32 that turns outputs into samples: Gumbel, std (number of Gaussians,) times normal, or logistic."""
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
    """Action numbers (N, A) from outputs (N, O): samples if noise was added, else the mode; (N,) int64 for one categorical."""
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
