"""A trained actor-critic as an ``Actor``, and as modules that torch loads without rgpo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from rgpo.control.actions import Rescale, column_bounds, column_starts, heads
from rgpo.control.actor import FORMAT, Actor
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.convolutions import Convolutions
from rgpo.control.description import Description, Moments, Network
from rgpo.control.envs.vector_env import VectorEnv
from rgpo.control.module_policy import LOG_STD, ModulePolicy
from rgpo.control.normalize import EPSILON, ObservationNormalizer
from rgpo.control.policy import ControlPolicy
from rgpo.control.spaces import describe
from rgpo.control.torch_network import TorchNetwork
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError
from rgpo.learning.export import Facts, NoExport
from rgpo.learning.types import Policy, State

EXPORTED_PROGRAM, TORCHSCRIPT, ONNX = "policy.pt2", "policy.ts", "policy.onnx"


def make_actor(
    policy: Policy,
    state: State,
    facts: Facts,
    env: VectorEnv,
    env_id: str,
    action_bounds: str,
    normalizer: ObservationNormalizer | None,
) -> Actor:
    """The policy as an ``Actor``, with the environment's spaces and the normalizer; state: the policy's.

    Raises: NoExport for a policy that is not one of rgpo's.
    """
    flat = cast(Tensor, state["flat"])
    if isinstance(policy, ActorCritic):
        weights, network, module = _weights(policy, flat), _describe_layers(policy), None
    elif isinstance(policy, ModulePolicy):
        kept = cast(dict[str, Tensor], state.get("buffers", {}))
        weights = {
            _own_name(name): x.numpy() for name, x in [*zip(policy.names, policy.unflatten(flat), strict=True), *kept.items()]
        }
        network, module = _describe_module(policy), TorchNetwork(policy.module, policy.shape)
    else:
        raise NoExport(f"{type(policy).__name__} is no policy of rgpo and has no method export")
    description: Description = {
        "format": FORMAT,
        "env_id": env_id,
        "observation_space": describe(env.observation_space, "observation"),
        "action_space": describe(env.action_space, "action"),
        "action_bounds": action_bounds,
        "observation_normalizer": None if normalizer is None else _moments(normalizer),
        "network": network,
        "run": asdict(facts),
    }
    return Actor(description, weights, module)


def _own_name(name: str) -> str:
    """A parameter's name in policy.safetensors, where the name log_std is reserved for that of the actions."""
    return {LOG_STD: "log_std", "log_std": "module.log_std"}.get(name, name)


def _describe_layers(policy: ActorCritic) -> Network:
    return {
        "distribution": _distribution(policy),
        "observation_size": policy.observation_size,
        "hidden_sizes": list(policy.mlp.hidden_sizes),
        "action_size": policy.output_size,
        "activation": policy.mlp.activation,
    }


def _describe_module(policy: ModulePolicy) -> Network:
    found: Network = {
        "kind": "module",
        "shape": list(policy.shape),
        "distribution": _distribution(policy),
        "observation_size": policy.observation_size,
        "hidden_sizes": [],
        "action_size": policy.output_size,
        "activation": "relu",
    }
    if isinstance(policy.module, Convolutions):
        found |= {"kind": "cnn", "picture": list(policy.module.sizes), "scale": policy.module.scale}
        found["hidden_sizes"] = [policy.module.actor.in_features]
    return found


def _distribution(policy: ControlPolicy) -> str:
    return policy.heads[0].kind if len(policy.heads) == 1 else "product"


def _weights(policy: ActorCritic, flat: Tensor) -> dict[str, Array]:
    """Named weights in the layout of torch.nn.Linear."""
    tensors = policy.unflatten(flat)
    found: dict[str, Array] = {} if policy.log_std is None else {"log_std": tensors[policy.num_layers].numpy()}
    for name, part in (("actor", tensors[: policy.num_layers]), ("critic", tensors[len(policy.actor_shapes) :])):
        for i in range(0, len(part), 2):
            found |= {f"{name}.{i}.weight": part[i].T.contiguous().numpy(), f"{name}.{i}.bias": part[i + 1].numpy()}
    return found


def _moments(normalizer: ObservationNormalizer) -> Moments:
    mean, variance = normalizer.mean[0], normalizer.squares[0] / normalizer.count
    return {"mean": mean.tolist(), "variance": variance.tolist(), "epsilon": EPSILON, "clip": float(normalizer.high[0, 0])}


class Outputs(nn.Module):
    """A network that also returns values, reduced to its outputs."""

    def __init__(self, network: TorchNetwork) -> None:
        super().__init__()
        self.module, self.shape = network.module, network.shape

    def train(self, mode: bool = True) -> Self:
        """No-op: networks act in eval mode, and exported programs refuse the call."""
        return self

    def forward(self, observation: Tensor) -> Tensor:
        """Flat observations (N, D) float32 -> outputs (N, O)."""
        output: Tensor = self.module(observation.reshape(-1, *self.shape))[0]
        return output


def _network_module(actor: Actor) -> nn.Module:
    """The actor's network: flat observations (N, D) float32 -> outputs (N, O)."""
    if isinstance(actor.network, TorchNetwork):
        return Outputs(actor.network)
    network = actor.description["network"]
    sizes = [network["observation_size"], *network["hidden_sizes"], network["action_size"]]
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), nn.Tanh() if network["activation"] == "tanh" else nn.ReLU()]
    module = nn.Sequential(*layers[:-1])
    named = {name: torch.from_numpy(np.array(x)) for name, x in actor.weights.items() if name.startswith("actor.")}
    module.load_state_dict({name.removeprefix("actor."): x for name, x in named.items()})
    return module


class PolicyModule(nn.Module):
    """Flat raw observations (N, D) of any float type -> the mode: (N,) int64 of a Discrete space, else (N, A) float32.

    The numbers of an action's parts are concatenated; those of a Box of floats are clipped to its bounds, and indices count from
    their start.
    """

    mean: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    middle: Tensor
    radius: Tensor
    limit: Tensor
    start: Tensor

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        space = actor.description["action_space"]
        self.actor = _network_module(actor)
        moments = actor.description["observation_normalizer"]
        self.normalized, self.clip = moments is not None, 0.0 if moments is None else moments["clip"]
        mean, variance, epsilon = (
            ([0.0], [1.0], 0.0) if moments is None else (moments["mean"], moments["variance"], moments["epsilon"])
        )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.register_buffer("scale", (torch.tensor(variance, dtype=torch.float64) + epsilon).sqrt())
        self.heads = [(head.kind, head.size) for head in heads(space)]
        self.discrete, self.rescaled = space["type"] == "Discrete", actor.rescale is not None
        low, high = column_bounds(space)
        rescale = Rescale(space)
        columns = {"low": low, "high": high, "middle": rescale.middle, "radius": rescale.radius, "limit": rescale.limit}
        for name, values in columns.items():
            self.register_buffer(name, torch.tensor(np.asarray(values, np.float32)))
        self.register_buffer("start", torch.from_numpy(column_starts(space)))

    def forward(self, observation: Tensor) -> Tensor:
        """The deterministic action."""
        x = observation.double()
        if self.normalized:
            x = ((x - self.mean) / self.scale).clamp(-self.clip, self.clip)
        output: Tensor = self.actor(x.float())
        if self.discrete:
            return output.argmax(-1) + self.start
        action = torch.cat(self._columns(output), -1)
        if self.rescaled:
            action = self.middle + self.radius * torch.minimum(torch.maximum(action, -self.limit), self.limit)
        return torch.minimum(torch.maximum(action, self.low), self.high) + self.start

    def _columns(self, output: Tensor) -> list[Tensor]:
        columns = []
        parts = torch.split(output, [size for _, size in self.heads], -1)
        for (kind, _), part in zip(self.heads, parts, strict=True):
            if kind == "categorical":
                columns.append(part.argmax(-1, keepdim=True).float())
            else:
                columns.append(part if kind == "gaussian" else (part > 0).float())
        return columns


def write_modules(actor: Actor, folder: Path, onnx: bool = False) -> None:
    """Write policy.pt2 (torch.export.load) and policy.ts (torch.jit.load), both of which take float32 batches of any size.

    onnx: also policy.onnx, with the input "observation" and the output "action".

    Raises: OSError if one cannot be written; ConfigError if a package for ONNX is not installed.
    """
    import warnings

    module = PolicyModule(actor).eval().requires_grad_(False)
    example = torch.zeros(2, actor.description["network"]["observation_size"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends torch.export in place of TorchScript; both are written
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("N")},))
        torch.export.save(program, folder / EXPORTED_PROGRAM)
        if onnx:
            _write_onnx(program, folder / ONNX)
        trace: Callable[..., torch.jit.ScriptModule] = torch.jit.trace  # untyped in torch
        trace(module, example).save(str(folder / TORCHSCRIPT))


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise ConfigError("onnx=true: needs packages that are not installed; pip install 'rgpo[onnx]'.") from error
    found = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=["observation"], output_names=["action"])
    assert found is not None
    found.save(str(path))
