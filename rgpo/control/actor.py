"""A trained control policy as a function of raw observations, from the files in a run's policy/.

policy.safetensors holds weights by the names of torch.nn.Sequential (actor.0.weight (out, in), actor.0.bias, actor.2.weight and
so on, the same for critic) and log_std of Gaussian actions; policy.json holds everything else.
Shapes: N observations of D numbers, A action numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from rgpo import atomic
from rgpo.control.spaces import Rescale, Space, choose, draw_noise, flatten, heads, row, to_env
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, first_line, require

DESCRIPTION, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 1
ACTIVATIONS: dict[str, Callable[..., Array]] = {"tanh": np.tanh, "relu": lambda x, out: np.maximum(x, 0.0, out=out)}


class Moments(TypedDict):
    """(o - mean)/sqrt(variance + epsilon), clipped to +-clip, in float64, then float32."""

    mean: list[float]
    variance: list[float]
    epsilon: float
    clip: float


class Network(TypedDict):
    """Actor and critic: linear layers with an activation between them."""

    distribution: str  # categorical over logits, gaussian with a mean and log_std, bernoulli over logits, or a product of these
    observation_size: int
    hidden_sizes: list[int]
    action_size: int  # outputs of the actor, for the factors of the action space one after the other
    activation: str


class Description(TypedDict):
    """The contents of policy.json."""

    format: int
    env_id: str
    observation_space: Space
    action_space: Space
    action_bounds: NotRequired[str]  # clip, or rescale from [-1, 1]; clip if it is missing
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
        self._std = np.exp(weights["log_std"]) if "log_std" in weights else None
        space = description["action_space"]
        self._heads = heads(space)
        self.rescale = Rescale(space) if description.get("action_bounds") == "rescale" else None
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

    def __call__(self, observation: object, *, deterministic: bool = True, rng: np.random.Generator | None = None) -> Any:
        """Action of one observation of the environment, or actions (N, ...) of a batch (N, ...), as the environment takes them.

        Every array of a Dict or Tuple has N in front in a batch. deterministic: the mode of the distribution; else a draw, with
        rng or a generator of the policy's own.

        Raises: ValueError for observations of another shape, or that are not finite.
        """
        seen, single = flatten(self.description["observation_space"], observation)
        if not np.isfinite(seen).all():
            raise ValueError("observation: contains NaN or infinity.")
        space = self.description["action_space"]
        found = to_env(space, self.draw(seen, None if deterministic else rng or self._rng))
        return row(space, found, 0) if single else found

    def draw(self, observation: Array, rng: np.random.Generator | None) -> Array:
        """For flat raw observations (N, D): indices (N,) from 0, or unbounded actions (N, A); the mode without rng."""
        output = self.output(observation)
        if rng is not None:
            output += draw_noise(self._heads, output.shape[:1], self._std, rng)
        action = choose(self._heads, output)
        return action if self.rescale is None else self.rescale(action)

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
