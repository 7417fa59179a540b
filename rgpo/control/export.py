"""A trained actor-critic as an ``Actor``, and as modules that torch loads without rgpo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rgpo.control.actor import FORMAT, Actor, Description, Moments, Network, Space, bounds
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.envs.vector_env import VectorEnv
from rgpo.control.normalize import EPSILON, ObservationNormalizer
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError
from rgpo.learning.export import Facts, NoExport
from rgpo.learning.types import Policy, State

EXPORTED_PROGRAM, TORCHSCRIPT, ONNX = "policy.pt2", "policy.ts", "policy.onnx"


def make_actor(
    policy: Policy,
    state: State,
    facts: Facts,
    *,
    env: VectorEnv,
    env_id: str,
    normalizer: ObservationNormalizer | None,
) -> Actor:
    """The policy with the environment's spaces and the normalizer; state: the policy's.

    Raises: NoExport for another kind of policy or space.
    """
    if not isinstance(policy, ActorCritic):
        raise NoExport(f"{type(policy).__name__} is no actor-critic of rgpo and has no method export")
    network: Network = {
        "distribution": "categorical" if policy.discrete else "gaussian",
        "observation_size": policy.observation_size,
        "hidden_sizes": list(policy.mlp.hidden_sizes),
        "action_size": policy.action_size,
        "activation": policy.mlp.activation,
    }
    description: Description = {
        "format": FORMAT,
        "env_id": env_id,
        "observation_space": _describe_space(env.observation_space),
        "action_space": _describe_space(env.action_space),
        "observation_normalizer": None if normalizer is None else _moments(normalizer),
        "network": network,
        "run": asdict(facts),
    }
    return Actor(description, _weights(policy, cast(Tensor, state["flat"])))


def _weights(policy: ActorCritic, flat: Tensor) -> dict[str, Array]:
    """Named weights in the layout of torch.nn.Linear."""
    tensors = policy.unflatten(flat)
    count = len(policy.actor_shapes)
    found: dict[str, Array] = {} if policy.discrete else {"log_std": tensors[count - 1].numpy()}
    for name, part in (("actor", tensors[: count if policy.discrete else count - 1]), ("critic", tensors[count:])):
        for i in range(0, len(part), 2):
            found |= {f"{name}.{i}.weight": part[i].T.contiguous().numpy(), f"{name}.{i}.bias": part[i + 1].numpy()}
    return found


def _moments(normalizer: ObservationNormalizer) -> Moments:
    mean, variance = normalizer.mean[0], normalizer.squares[0] / normalizer.count
    return {"mean": mean.tolist(), "variance": variance.tolist(), "epsilon": EPSILON, "clip": float(normalizer.high[0, 0])}


def _describe_space(space: spaces.Space[Any]) -> Space:
    """Raises: NoExport for a space that is neither Box nor Discrete."""
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if not isinstance(space, spaces.Box):
        raise NoExport(f"its space {space} is neither Box nor Discrete")
    low, high = (_bounds(x) for x in (space.low, space.high))
    return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}


def _bounds(values: Array) -> float | list[float | None] | None:
    """One number if all are equal; None where there is no bound."""
    found = [x if math.isfinite(x) else None for x in values.astype(np.float64).ravel().tolist()]
    return found[0] if len(set(found)) == 1 else found


class PolicyModule(nn.Module):
    """Flat raw observations (N, D) of any float type -> actions (N, A) float32 within the bounds, or (N,) int64: the mode."""

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        network, space = actor.description["network"], actor.description["action_space"]
        sizes = [network["observation_size"], *network["hidden_sizes"], network["action_size"]]
        layers: list[nn.Module] = []
        for size, following in pairwise(sizes):
            layers += [nn.Linear(size, following), nn.Tanh() if network["activation"] == "tanh" else nn.ReLU()]
        self.actor = nn.Sequential(*layers[:-1])
        weights: Mapping[str, Array] = actor.weights
        named = {name: torch.from_numpy(np.array(x)) for name, x in weights.items() if name.startswith("actor.")}
        self.actor.load_state_dict({name.removeprefix("actor."): x for name, x in named.items()})
        moments = actor.description["observation_normalizer"]
        self.normalized, self.clip = moments is not None, 0.0 if moments is None else moments["clip"]
        mean, variance, epsilon = (
            ([0.0], [1.0], 0.0) if moments is None else (moments["mean"], moments["variance"], moments["epsilon"])
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", (torch.tensor(variance, dtype=torch.float64) + epsilon).sqrt())
        self.discrete = space["type"] == "Discrete"
        self.start = space["start"] if self.discrete else 0
        low, high = ([0.0], [0.0]) if self.discrete else bounds(space)
        self.register_buffer("low", torch.tensor(np.asarray(low, np.float32)))
        self.register_buffer("high", torch.tensor(np.asarray(high, np.float32)))

    def forward(self, observation: Tensor) -> Tensor:
        """The deterministic action."""
        x = observation.double()
        if self.normalized:
            x = ((x - self.mean) / self.scale).clamp(-self.clip, self.clip)
        output: Tensor = self.actor(x.float())
        if self.discrete:
            return output.argmax(-1) + self.start
        return torch.minimum(torch.maximum(output, self.low), self.high)


def write_modules(actor: Actor, folder: Path, onnx: bool = False) -> None:
    """Write policy.pt2 (torch.export.load) and policy.ts (torch.jit.load), both of which take float32 batches of any size.

    onnx: also policy.onnx, with the input "observation" and the output "action".

    Raises: OSError if one cannot be written; ConfigError if a package for ONNX is not installed.
    """
    import warnings

    module = PolicyModule(actor).eval().requires_grad_(False)
    example = torch.zeros(2, actor.description["network"]["observation_size"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends torch.export in place of TorchScript; here are both
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
        torch.export.save(program, folder / EXPORTED_PROGRAM)
        if onnx:
            _write_onnx(program, folder / ONNX)
        torch.jit.trace(module, example).save(str(folder / TORCHSCRIPT))  # type: ignore[no-untyped-call]


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise ConfigError("onnx=true: needs packages that are not installed; pip install 'rgpo[onnx]'.") from error
    found = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=["observation"], output_names=["action"])
    assert found is not None
    found.save(str(path))
