"""Parts that the tests of updates share; knobs are those of published PPO and TRPO unless a test changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gate_options import load_gate
from torch import Tensor

from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlBatch
from rgpo.core import gates
from rgpo.core.advantages import GAE
from rgpo.core.kl_penalty import Divergence, NoPenalty
from rgpo.core.surrogate import Detached, GateObjective, Objective
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.loss import GateLoss
from rgpo.learning.natural_gradient import NaturalGradient
from rgpo.learning.sgd import SGD

Make = Callable[..., ActorCritic]
MakeBatch = Callable[..., ControlBatch]
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["gaussian", "categorical"])


def objective(gate: Any) -> Objective:
    return GateObjective(gate=gate, ref_gate=gates.Open(), combine=Detached())


def sgd(**change: Any) -> SGD:
    knobs: dict[str, Any] = {"num_epochs": 10, "num_minibatches": 32, "lr": 3e-4, "anneal_lr": True, "adam_eps": 1e-5}
    knobs |= {"max_grad_norm": 0.5, "clip_jointly": True, "vf_coef": 0.5, "ent_coef": 0.0, "value_clip": 0.2, "compile": False}
    return SGD(**(knobs | change))


def natural_gradient(**change: Any) -> NaturalGradient:
    knobs: dict[str, Any] = {"kl_max": 0.01, "cg_iterations": 10, "cg_damping": 0.1, "line_search_shrink": 0.8}
    knobs |= {"line_search_tries": 10, "critic_epochs": 10, "critic_minibatches": 32, "critic_lr": 1e-3, "compile": False}
    return NaturalGradient(**(knobs | change))


EXACT = Divergence(estimator="exact", anchor="old")
K3 = Divergence(estimator="k3", anchor="reference")


def gae(**change: Any) -> GAE:
    return GAE(**({"gamma": 0.99, "lam": 0.95, "bootstrap_truncated": True, "normalize": "minibatch"} | change))


def algorithm(**change: Any) -> GateAlgorithm:
    """The paper's gate without a penalty, on published PPO's settings."""
    parts: dict[str, Any] = {"gate": load_gate("sigmoid"), "ref_gate": gates.Open(), "gate_combination": Detached()}
    parts |= {"advantage": gae(), "penalty": NoPenalty(), "update": sgd()}
    return GateAlgorithm(**(parts | change))


def setup(
    update: Any,
    policy: Any,
    gate: Any,
    *,
    divergence: Divergence | None = None,
    normalize: str = "minibatch",
    iterations: int = 1,
    seed: int = 0,
) -> None:
    """update.setup with the surrogate of one gate."""
    loss = GateLoss(objective=objective(gate), divergence=divergence)
    update.setup(policy, loss, normalize=normalize, num_iterations=iterations, seed=seed)


def nudge(policy: ActorCritic, scale: float = 0.05, seed: int = 0) -> None:
    """Move every parameter by Gaussian noise."""
    policy.flat.add_(scale * noise(len(policy.flat), seed=seed))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
