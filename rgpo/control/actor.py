"""A trained control policy as a function of raw observations, loaded from the files in a run's policy/.

policy.safetensors holds the weights, named as in torch.nn.Sequential (actor.0.weight (out, in), actor.0.bias, actor.2.weight and
so on, likewise for critic), and log_std for Gaussian actions; policy.json holds everything else.
Shapes: N observations of D numbers, A action numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rgpo import atomic
from rgpo.control.actions import EnvAction, Rescale, choose, draw_noise, heads, row, to_env
from rgpo.control.description import Description, Network
from rgpo.control.spaces import flatten
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, described, require

if TYPE_CHECKING:
    from rgpo.control.torch_network import TorchNetwork

DESCRIPTION, WEIGHTS = "policy.json", "policy.safetensors"
FORMAT = 1
ACTIVATIONS: dict[str, Callable[..., Array]] = {"tanh": np.tanh, "relu": lambda x, out: np.maximum(x, 0.0, out=out)}


class Actor:
    """policy(observation) -> action; see ``__call__``."""

    def __init__(self, description: Description, weights: Mapping[str, Array], network: TorchNetwork | None = None) -> None:
        self.description, self.weights = description, dict(weights)
        self.network: Callable[[Array], Array] = network or make_network(description["network"], weights)
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
        """Load the policy from a folder with policy.json and policy.safetensors.

        Raises: ConfigError if one of them cannot be read, or if they do not match.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            description: Description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            require(description.get("format") == FORMAT, f"{folder}", DESCRIPTION, f"is not of format {FORMAT}; export it again.")
            weights = load((folder / WEIGHTS).read_bytes())
            if description["network"].get("kind") == "module":
                from rgpo.control.torch_network import load_program

                return cls(description, weights, load_program(folder, description["network"]["shape"]))
            return cls(description, weights)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            if isinstance(error, ConfigError):
                raise
            why = described(error)
            raise ConfigError(f"{folder}: cannot be used as a policy ({why}); export it again.") from error

    def save(self, folder: Path) -> None:
        """Write the files.

        Raises: OSError if one cannot be written; NoExport for a module that torch.export cannot trace.
        """
        from safetensors.numpy import save

        if self.description["network"].get("kind") == "module":
            from rgpo.control.torch_network import TorchNetwork

            assert isinstance(self.network, TorchNetwork)
            self.network.save(folder)
        atomic.write_bytes(folder / WEIGHTS, save({name: np.ascontiguousarray(x) for name, x in self.weights.items()}))
        atomic.write_text(folder / DESCRIPTION, json.dumps(self.description, indent=1, allow_nan=False) + "\n")

    def __call__(self, observation: object, *, deterministic: bool = True, rng: np.random.Generator | None = None) -> EnvAction:
        """The action for an observation, or actions (N, ...) for a batch (N, ...), in the format of the environment.

        In a batch, every array of a Dict or Tuple has a leading axis N. deterministic: return the mode of the distribution; else
        sample, with rng or the policy's own generator.

        Raises: ValueError for observations that are not in the space, or not finite.
        """
        seen, single = flatten(self.description["observation_space"], observation)
        with np.errstate(over="ignore"):
            fits = np.isfinite(seen if self.description["observation_normalizer"] else seen.astype(np.float32)).all()
        if not fits:
            raise ValueError("observation: contains NaN, infinity or numbers too large for float32.")
        space = self.description["action_space"]
        found = to_env(space, self.draw(seen, None if deterministic else rng or self._rng))
        return row(space, found, 0) if single else found

    def draw(self, observation: Array, rng: np.random.Generator | None) -> Array:
        """For flat raw observations (N, D): indices (N,) from 0, or unclipped action numbers (N, A); the mode if rng is None."""
        output = self.output(observation)
        if rng is not None:
            output += draw_noise(self._heads, output.shape[:1], self._std, rng)
        action = choose(self._heads, output)
        return action if self.rescale is None else self.rescale(action)

    def output(self, observation: Array) -> Array:
        """Outputs of the actor, (N, O) float32, for flat raw observations (N, D)."""
        moments = self.description["observation_normalizer"]
        if moments is not None:
            observation = np.clip((observation - self._mean) / self._scale, -moments["clip"], moments["clip"])
        return self.network(observation.astype(np.float32))


class LinearLayers:
    """The actor of an MLP in numpy."""

    def __init__(self, network: Network, weights: Mapping[str, Array]) -> None:
        self._act = ACTIVATIONS[network["activation"]]
        names = [f"actor.{2 * i}" for i in range(len(network["hidden_sizes"]) + 1)]
        self._layers = [(np.ascontiguousarray(weights[f"{name}.weight"].T), weights[f"{name}.bias"]) for name in names]

    def __call__(self, x: Array) -> Array:
        """Outputs (N, O) of observations (N, D) float32."""
        for i, (weight, bias) in enumerate(self._layers):
            x = x.dot(weight)
            x += bias
            if i + 1 < len(self._layers):
                self._act(x, out=x)
        return x


def make_network(network: Network, weights: Mapping[str, Array]) -> Callable[[Array], Array]:
    """Build the actor's network from its weights; torch is imported only for convolutions."""
    if network.get("kind", "mlp") == "mlp":
        return LinearLayers(network, weights)
    from rgpo.control.torch_network import convolutions

    return convolutions(network, weights)
