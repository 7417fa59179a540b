"""A trained control policy as a function of raw observations, from the files in a run's policy/.

policy.safetensors holds weights by the names of torch.nn.Sequential (actor.0.weight (out, in), actor.0.bias, actor.2.weight and
so on, the same for critic) and log_std of Gaussian policies; policy.json holds everything else.
Shapes: N observations of D numbers, A action numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np

from rgpo import atomic
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, first_line, require

DESCRIPTION, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 1
ACTIVATIONS: dict[str, Callable[..., Array]] = {"tanh": np.tanh, "relu": lambda x, out: np.maximum(x, 0.0, out=out)}


class Space(TypedDict, total=False):
    """A gymnasium Box, whose bounds are one number for all or a flat list, null where there is none, or a Discrete."""

    type: str
    shape: list[int]
    dtype: str
    low: float | list[float | None] | None
    high: float | list[float | None] | None
    n: int
    start: int


class Moments(TypedDict):
    """(o - mean)/sqrt(variance + epsilon), clipped to +-clip, in float64, then float32."""

    mean: list[float]
    variance: list[float]
    epsilon: float
    clip: float


class Network(TypedDict):
    """Actor and critic: linear layers with an activation between them."""

    distribution: str  # categorical over logits, or gaussian with a mean and log_std
    observation_size: int
    hidden_sizes: list[int]
    action_size: int
    activation: str


class Description(TypedDict):
    """The contents of policy.json."""

    format: int
    env_id: str
    observation_space: Space
    action_space: Space
    observation_normalizer: Moments | None
    network: Network
    run: dict[str, object]  # rgpo.learning.export.Facts


class Actor:
    """policy(observation) -> action; see ``__call__``."""

    def __init__(self, description: Description, weights: Mapping[str, Array]) -> None:
        self.description, self.weights = description, dict(weights)
        network = description["network"]
        self._act = ACTIVATIONS[network["activation"]]
        count = len(network["hidden_sizes"]) + 1
        self._layers = [
            (np.ascontiguousarray(weights[f"actor.{2 * i}.weight"].T), weights[f"actor.{2 * i}.bias"]) for i in range(count)
        ]
        self._std = np.exp(weights["log_std"]) if network["distribution"] == "gaussian" else None
        moments = description["observation_normalizer"]
        if moments is not None:
            self._mean = np.array(moments["mean"])[None]
            self._scale = np.sqrt(np.array(moments["variance"])[None] + moments["epsilon"])
        self._rng = np.random.default_rng()

    @classmethod
    def load(cls, folder: Path) -> Actor:
        """The policy of a folder that holds policy.json and policy.safetensors.

        Raises: ConfigError if one of them cannot be read, or they do not fit together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            description: Description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            require(description.get("format") == FORMAT, f"{folder}", DESCRIPTION, f"is not of format {FORMAT}; export it again.")
            return cls(description, load((folder / WEIGHTS).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            if isinstance(error, ConfigError):
                raise
            why = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"{folder}: cannot be used as a policy ({why}); export it again.") from error

    def save(self, folder: Path) -> None:
        """Write both files.

        Raises: OSError if one cannot be written.
        """
        from safetensors.numpy import save

        atomic.write_bytes(folder / WEIGHTS, save({name: np.ascontiguousarray(x) for name, x in self.weights.items()}))
        atomic.write_text(folder / DESCRIPTION, json.dumps(self.description, indent=1, allow_nan=False) + "\n")

    def __call__(self, observation: object, *, deterministic: bool = True, rng: np.random.Generator | None = None) -> Array:
        """Action of one observation of the environment, or actions (N, ...) of a batch (N, ...), as the environment takes them.

        deterministic: the mode of the distribution; else a draw, with rng or a generator of the policy's own.

        Raises: ValueError for observations of another shape, or that are not finite.
        """
        seen, single = self._flatten(observation)
        found = self._to_env(self.draw(seen, None if deterministic else rng or self._rng))
        result: Array = found[0] if single else found
        return result

    def draw(self, observation: Array, rng: np.random.Generator | None) -> Array:
        """For flat raw observations (N, D): indices (N,) from 0, or unbounded actions (N, A); the mode without rng."""
        action = self.output(observation)
        if self._std is not None:
            return action if rng is None else action + self._std * rng.standard_normal(action.shape).astype(np.float32)
        if rng is not None:
            action += rng.gumbel(size=action.shape).astype(np.float32)
        choice: Array = action.argmax(-1)
        return choice

    def output(self, observation: Array) -> Array:
        """Logits or Gaussian means (N, A) float32 of flat raw observations (N, D)."""
        moments = self.description["observation_normalizer"]
        if moments is not None:
            observation = np.clip((observation - self._mean) / self._scale, -moments["clip"], moments["clip"])
        x: Array = observation.astype(np.float32)
        for i, (weight, bias) in enumerate(self._layers):
            x = x.dot(weight)
            x += bias
            if i + 1 < len(self._layers):
                self._act(x, out=x)
        return x

    def _flatten(self, observation: object) -> tuple[Array, bool]:
        """(N, D) float64, and whether it was a single observation."""
        space = self.description["observation_space"]
        shape = tuple(space["shape"]) if space["type"] == "Box" else ()
        found = np.asarray(observation)
        single = found.shape == shape
        if found.dtype.kind not in "fiub" or not (single or (found.ndim and found.shape[1:] == shape)):
            is_array = f"an array of shape {found.shape} and type {found.dtype}"
            batch = ", ".join(["N", *map(str, shape)])
            raise ValueError(f"observation: is {is_array}; give one of shape {shape}, or a batch ({batch}).")
        if space["type"] == "Box":
            flat = found.reshape(1 if single else len(found), math.prod(shape)).astype(np.float64)
            if not np.isfinite(flat).all():
                raise ValueError("observation: contains NaN or infinity.")
            return flat, single
        place = found.reshape(-1).astype(np.int64) - space["start"]
        if not ((place >= 0) & (place < space["n"])).all():
            raise ValueError(f"observation: must be from {space['start']} to {space['start'] + space['n'] - 1}.")
        return np.eye(space["n"])[place], single

    def _to_env(self, action: Array) -> Array:
        """The result of ``draw`` as the action space has it: indices from its start, or numbers clipped to the bounds."""
        space = self.description["action_space"]
        if space["type"] == "Discrete":
            return action + space["start"]
        low, high = bounds(space)
        clipped = np.minimum(np.maximum(action, low), high)
        return clipped.astype(space["dtype"], copy=False).reshape(len(action), *space["shape"])


def bounds(space: Space) -> tuple[Array, Array]:
    """Lower and upper bounds of a flattened Box, each (A,) or (1,) float64, infinite where there is none."""
    return _filled(space["low"], -np.inf), _filled(space["high"], np.inf)


def _filled(given: float | list[float | None] | None, missing: float) -> Array:
    values = given if isinstance(given, list) else [given]
    return np.array([missing if x is None else x for x in values], np.float64)
