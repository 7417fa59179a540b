"""Errors name what became non-finite first; runs whose policy stopped changing end with a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import roll
from torch import Tensor

import rgpo
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlRollout
from rgpo.core.advantages import GAE
from rgpo.core.gate import Gate
from rgpo.core.gates import Clip, Open
from rgpo.core.kl_penalty import NoPenalty
from rgpo.core.rollout import Array, Rollout
from rgpo.core.surrogate import Detached
from rgpo.errors import NonFiniteError
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.natural_gradient import NaturalGradient
from rgpo.learning.sgd import SGD
from rgpo.learning.standstill import standstill
from rgpo.learning.types import Update

Make = Callable[..., ActorCritic]
CLIP = Clip(eps_low=0.2, eps_high=0.2, cap=None)


def sgd(**change: Any) -> SGD:
    knobs: dict[str, Any] = {"num_epochs": 2, "num_minibatches": 4, "lr": 1e-3, "anneal_lr": False, "adam_eps": 1e-5}
    knobs |= {"max_grad_norm": 0.5, "vf_coef": 0.5, "ent_coef": 0.0, "value_clip": None, "compile": False, "clip_jointly": True}
    return SGD(**(knobs | change))


def trpo() -> NaturalGradient:
    return NaturalGradient(
        kl_max=0.01,
        cg_iterations=5,
        cg_damping=0.1,
        line_search_shrink=0.8,
        line_search_tries=5,
        critic_epochs=1,
        critic_minibatches=4,
        critic_lr=1e-3,
        compile=False,
    )


def rollout(policy: ActorCritic, rng: np.random.Generator, **change: Any) -> ControlRollout:
    """32 steps of two environments, all finite."""
    shape = (32, 2)
    observation = rng.standard_normal((*shape, policy.observation_size)).astype(np.float32)
    action = policy.act(observation.reshape(64, -1), policy.draw_noise((64,), rng))
    action = action.reshape(*shape, *action.shape[1:])
    value = policy.values(observation.reshape(64, -1)).reshape(shape).astype(np.float64)
    parts: dict[str, Any] = {"observation": observation, "action": action, "reward": rng.standard_normal(shape), "value": value}
    parts |= {"terminated": np.zeros(shape, bool), "done": np.zeros(shape, bool), "next_value": value, "metrics": {}}
    return ControlRollout(**(parts | change))


def gate_algorithm(*, update: Update | None = None, gate: Gate = CLIP, advantage: Any = None) -> GateAlgorithm:
    return GateAlgorithm(
        gate=gate,
        ref_gate=Open(),
        gate_combination=Detached(),
        advantage=advantage or GAE(gamma=0.99, lam=0.95, bootstrap_truncated=True, normalize="minibatch"),
        penalty=NoPenalty(),
        update=update or sgd(),
    )


def learn(policy: ActorCritic, *, update: Update | None = None, gate: Gate = CLIP, advantage: Any = None, **change: Any) -> None:
    """Two iterations; the second has the changes."""
    algorithm = gate_algorithm(update=update, gate=gate, advantage=advantage)
    algorithm.setup(policy, 2, 0)
    rng = np.random.default_rng(0)
    algorithm.learn(policy, rollout(policy, rng), False)
    algorithm.learn(policy, rollout(policy, rng, **change), False)


def spoiled(value: float) -> Array:
    reward = np.zeros((32, 2))
    reward[5, 1] = value
    return reward


@dataclass(frozen=True, kw_only=True)
class Root(Gate):
    """The square root of the log ratio, which has no value below ratio 1."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return d.sqrt()


@dataclass(frozen=True, kw_only=True)
class Steep(Gate):
    """Finite, with an infinite slope at ratio 1."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return d.abs().sqrt()


@dataclass(frozen=True, kw_only=True)
class OneSided(Gate):
    """NaN for the actions that are discouraged."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return d.where(advantage >= 0, d * math.nan)


class Careless(GAE):
    """An estimator of the user's that divides by 0."""

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        advantage, target = super().__call__(rollout)
        advantage[3, 0] = math.nan
        return advantage, target


class Narrow(GAE):
    """An estimator of the user's that loses an axis."""

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        advantage, target = super().__call__(rollout)
        return advantage[:, 0], target


GAE_KNOBS: dict[str, Any] = {"gamma": 0.99, "lam": 0.95, "bootstrap_truncated": True, "normalize": "minibatch"}
INNOCENT = "update.lr"  # the learning rate is to blame in none of these
CULPRITS: dict[str, tuple[dict[str, Any], str]] = {
    "reward NaN": ({"reward": spoiled(math.nan)}, "reward is NaN or infinite; check the task's rewards"),
    "reward infinite": ({"reward": spoiled(math.inf)}, "reward is NaN or infinite"),
    "reward 1e30": ({"reward": spoiled(1e30)}, r"value loss overflowed with value targets up to .*e\+(29|30); scale the rewards"),
    "reward 1e200": ({"reward": spoiled(1e200)}, r"advantage of up to 1e\+200 is infinite in float32; scale the rewards"),
    "reward 1e308": ({"reward": np.full((32, 2), 1e308)}, r"advantage of advantage=GAE is NaN or infinite .* scale the rewards"),
    "observation NaN": (
        {"observation": np.full((32, 2, 5), math.nan, np.float32)},
        "observation is NaN or infinite; check the env",
    ),
    "value NaN": ({"value": spoiled(math.nan)}, "value function became NaN or infinite; lower the learning rate, or start"),
    "estimator": (
        {"advantage": Careless(**GAE_KNOBS)},
        "advantage of advantage=Careless is NaN or infinite .*; check the estimator",
    ),
    "gate": ({"gate": Root()}, r"gate=Root\(\): its (value|slope) is (nan|inf) at log ratio .* and advantage "),
    "slope of a gate": ({"gate": Steep()}, r"gate=Steep\(\): its slope is (nan|inf) at log ratio 0 and advantage "),
    "gate on one side": ({"gate": OneSided()}, r"gate=OneSided\(\): its value is nan at log ratio .* and advantage -"),
}


@pytest.mark.parametrize("kind", CULPRITS)
@pytest.mark.parametrize("make_update", [sgd, trpo])
def test_the_first_culprit_is_named(make_policy: Make, kind: str, make_update: Callable[[], Update]) -> None:
    change, sentence = CULPRITS[kind]
    with pytest.raises(NonFiniteError, match=sentence) as caught:
        learn(make_policy(hidden_sizes=(8,)), update=make_update(), **change)
    assert INNOCENT not in str(caught.value) and "kl_max" not in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_observations_that_overflow_the_network_are_named(make_policy: Make) -> None:
    """The network is sound, and so is every observation."""
    large = np.full((32, 2, 5), 3e38, np.float32)
    with pytest.raises(NonFiniteError, match=r"overflows on observations as large as 3e\+38, scale the observations"):
        learn(make_policy(activation="relu"), observation=large)


def test_a_step_that_is_too_large_is_named_with_its_remedy(make_policy: Make) -> None:
    with pytest.raises(
        NonFiniteError, match=r"lower update\.lr=1e\+30 or set update\.max_grad_norm \(gradient step [2-8] of 8\)"
    ):
        learn(make_policy(), update=sgd(lr=1e30, max_grad_norm=None))


def test_parameters_that_overflow_at_the_last_step_are_noticed(make_policy: Make) -> None:
    """All losses and gradients are finite; what they lead to is not."""
    sentence = r"(parameters|KL\(old \|\| new\)) became .* after the last gradient step of the iteration; lower update\.lr"
    with pytest.raises(NonFiniteError, match=sentence):
        learn(make_policy(), update=sgd(lr=1e30, num_epochs=1, num_minibatches=1))


def test_an_estimator_of_another_shape_is_named(make_policy: Make) -> None:
    with pytest.raises(ValueError, match=r"advantage=Narrow: must return .* shape \(32, 2\), not \[\(32,\), \(32, 2\)\]"):
        learn(make_policy(), advantage=Narrow(**GAE_KNOBS))


def test_the_policy_is_left_as_it_was(make_policy: Make) -> None:
    policy = make_policy()
    learn(policy)
    other = make_policy()
    with pytest.raises(NonFiniteError):
        learn(other, reward=spoiled(math.nan))
    assert other.flat.isfinite().all() and not torch.equal(other.flat, policy.flat)


NEVER = np.full(30, math.nan)  # a column that the algorithm does not measure
ALWAYS = np.full(30, 0.01)


def still(num_iterations: int) -> Array:
    """A column of 30 iterations that is 0 in the last ones."""
    return np.where(np.arange(30) < 30 - num_iterations, 0.01, 0.0)


def test_a_policy_that_stopped_changing_is_reported() -> None:
    sentence = r"the KL\(old \|\| new\) was 0 in the last 29 of 30 iterations: nothing was learned there"
    assert re.match(sentence, standstill(still(29), ALWAYS) or "")
    assert "the gradient was 0 in the last 3 of 30" in (standstill(still(3), still(3)) or "")
    assert "in the last 30 of 30 iterations" in (standstill(still(30), NEVER) or "")
    assert standstill(np.zeros(2), NEVER[:2]) is not None


def test_other_policies_are_not() -> None:
    """The cases that must not be reported: a pause, a tenth that is not whole, and numbers that were not measured."""
    assert standstill(ALWAYS, ALWAYS) is None
    assert standstill(still(2), ALWAYS) is None
    assert standstill(still(29)[::-1], ALWAYS) is None
    assert standstill(NEVER, NEVER) is None
    assert standstill(np.zeros(1), np.zeros(1)) is None
    assert standstill(np.zeros(0), np.zeros(0)) is None
    assert standstill(ALWAYS * 1e-9, ALWAYS * 1e-30) is None


@pytest.mark.parametrize(("lr", "stands"), [(1e3, True), (1e-3, False)])
def test_a_step_size_of_1000_ends_in_a_standstill(make_policy: Make, lr: float, stands: bool) -> None:
    """A categorical policy saturates: its probabilities are 0 and 1 in single precision."""
    policy, rng, columns = make_policy(discrete=True, policy_gain=0.01), np.random.default_rng(0), []
    algorithm = gate_algorithm(update=sgd(lr=lr))
    algorithm.setup(policy, 10, 0)
    for _ in range(10):
        metrics = algorithm.learn(policy, rollout(policy, rng), False)
        columns.append((metrics["kl/old_exact"], metrics["grad/norm_max"]))
    assert (standstill(*np.array(columns).T) is not None) == stands


LANGUAGE: dict[str, tuple[dict[str, Any], float, str]] = {
    "gate": ({"gate": Root()}, 0.0, r"gate=Root\(\): its (value|slope) is (nan|inf) at log ratio "),
    "reward": ({}, math.nan, "reward is NaN or infinite; check the task's rewards"),
    "step": ({"update": sgd(lr=1e30, num_minibatches=2, max_grad_norm=None)}, 0.0, r"lower update\.lr=1e\+30"),
}


@pytest.mark.parametrize("kind", LANGUAGE)
def test_language_models_have_the_same_culprits(make_language_model: Callable[..., Any], kind: str) -> None:
    """The engine of torch modules: two micro-batches, of which only one may have the culprit."""
    parts, reward, sentence = LANGUAGE[kind]
    policy = make_language_model()
    algorithm = gate_algorithm(**({"update": sgd(num_minibatches=2)} | parts))
    algorithm.setup(policy, 2, 0)
    completions = roll(policy)
    completions.reward[0, -1] += reward
    with pytest.raises(NonFiniteError, match=sentence) as caught:
        algorithm.learn(policy, completions, False)
    assert (kind == "step") == (INNOCENT in str(caught.value))


def test_a_run_that_stands_still_says_so_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "task=cartpole",
        "task.num_envs=2",
        "task.num_steps=32",
        "num_iterations=10",
        "eval_every=0",
        f"results_dir={tmp_path}",
    )
    rgpo.run("algo=ppo", *words)
    assert "nothing was learned" not in capsys.readouterr().out
    rgpo.run("algo=ppo", *words, "update.lr=1000")
    assert "the KL(old || new) was 0 in the last" in capsys.readouterr().out
