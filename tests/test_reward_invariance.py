"""A reward's zero is arbitrary: a constant added to it changes no run; nor does its scale where advantages are divided by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import batch_of, engine, make_sgd
from tiny_runs import OWN_ALGORITHMS, TinyRun
from update_parts import noise, setup, sgd

from rgpo.core import gates
from rgpo.core.rollout import Array
from rgpo.learning.adam import clip_by_norm
from rgpo.learning.flat_adam import Statistics

SCALED = ("dapo", "grpo", "gspo", "p3o")  # advantages over the group's std and no KL in the reward


def reward_of(constant: float, scale: float) -> Any:
    """Multiples of 1/8, so that shifted rewards and their means are exact."""

    def reward(texts: Sequence[str]) -> Array:
        return np.array([constant + scale * (sum(map(ord, text)) % 97) / 8 for text in texts])

    return reward


def trained(checkpoint: Path, algo: str, *words: str, constant: float = 0.0, scale: float = 1.0) -> dict[str, Any]:
    """The parameters after three iterations."""
    run = TinyRun(checkpoint, algo, *words, reward=reward_of(constant, scale))
    for _ in range(3):
        run.iterate()
    return run.policy.state_dict()


def assert_equal(found: dict[str, Any], wanted: dict[str, Any], equal: bool = True) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted) == equal


@pytest.mark.parametrize("algo", OWN_ALGORITHMS)
def test_a_constant_in_the_reward_changes_nothing(algo: str, tiny_checkpoint: Path) -> None:
    plain = trained(tiny_checkpoint, algo)
    for constant in (20.0, -5.0):
        assert_equal(trained(tiny_checkpoint, algo, constant=constant), plain)


def test_nor_with_stale_rollouts_or_discounting(tiny_checkpoint: Path) -> None:
    for words in (("task.staleness=1",), ("advantage.gamma=0.9",), ("advantage.bootstrap_truncated=true",)):
        assert_equal(trained(tiny_checkpoint, "rgpo", *words, constant=20.0), trained(tiny_checkpoint, "rgpo", *words))


@pytest.mark.parametrize("algo", ["rgpo", "ppo", "trpo", "reinforce", "awr"])
def test_without_centering_it_does(algo: str, tiny_checkpoint: Path) -> None:
    words = ("task.center_scores=false",)
    assert_equal(trained(tiny_checkpoint, algo, *words, constant=20.0), trained(tiny_checkpoint, algo, *words), equal=False)


@pytest.mark.parametrize("algo", SCALED)
def test_the_scale_of_a_reward_changes_nothing_where_it_is_divided_out(algo: str, tiny_checkpoint: Path) -> None:
    words = ("advantage.eps=1e-20",)
    assert_equal(trained(tiny_checkpoint, algo, *words, scale=4.0), trained(tiny_checkpoint, algo, *words))


@pytest.mark.parametrize("algo", ["rgpo", "ppo_kl", "ppo", "trpo", "awr", "reinforce", "rloo", "sapo"])
def test_elsewhere_it_does(algo: str, tiny_checkpoint: Path) -> None:
    assert_equal(trained(tiny_checkpoint, algo, scale=4.0), trained(tiny_checkpoint, algo), equal=False)


def test_the_offset_is_the_first_rollouts_mean_logged_and_restored(tiny_checkpoint: Path) -> None:
    run, other = (TinyRun(tiny_checkpoint, "rgpo", reward=reward_of(20.0, 1.0)) for _ in range(2))
    first = run.iterate()
    second = run.iterate()
    assert first["reward/offset"] == second["reward/offset"] == first["reward/train_mean"] != second["reward/train_mean"]
    other.restore(run.state())
    third, again = run.iterate(), other.iterate()
    assert third["reward/offset"] == again["reward/offset"] == first["reward/offset"]
    assert third["loss/value"] == again["loss/value"]
    assert "reward/offset" not in TinyRun(tiny_checkpoint, "grpo").iterate()


def test_the_value_heads_gradient_is_clipped_apart(make_language_model: Any) -> None:
    """A hundred times the value loss: the policy's share of a joint norm would be small, its own stays at the limit."""
    lengths = {}
    for jointly in (True, False):
        policy = make_language_model()
        adam = engine(make_sgd(policy, max_grad_norm=0.01, clip_jointly=jointly, vf_coef=100.0, num_minibatches=1))
        (rows,), _ = adam.run_epochs(batch_of(policy, num_minibatches=1), 1e-9, 0.0, 1)
        actor, critic = adam.parameters[:-2], adam.parameters[-2:]
        both = (actor, critic)
        norms = [torch.cat([p.grad.flatten() for p in part if p.grad is not None]).norm().item() for part in both]
        lengths[jointly] = norms
        statistics = Statistics(*rows[0])
        assert statistics.grad_clipped == 1 and statistics.grad_norm > 0.01
    assert np.hypot(*lengths[True]) == pytest.approx(0.01, rel=1e-3) and lengths[True][0] < 0.005
    assert lengths[False] == pytest.approx([0.01, 0.01], rel=1e-3)


def test_clip_apart_on_a_vector(make_policy: Any, make_batch: Any) -> None:
    gradient = torch.cat([3 * noise(10), 100 * noise(5, seed=1)])
    found, norm = clip_by_norm(gradient, 0.5, 10)
    for part in (slice(10), slice(10, 15)):
        torch.testing.assert_close(found[part], clip_by_norm(gradient[part], 0.5)[0])
    assert norm == gradient[:10].norm()
    gradient[12] = torch.inf
    assert clip_by_norm(gradient, 0.5, 10)[1].isnan()
    changed = []
    for jointly in (True, False):
        policy = make_policy()
        update = sgd(num_epochs=1, num_minibatches=2, clip_jointly=jointly, vf_coef=50.0)
        setup(update, policy, gates.Log(scale="none"))
        metrics, _ = update(policy, make_batch(policy, 64), 0.0)
        changed.append((policy.flat.clone(), metrics["grad/norm_mean"]))
    assert not torch.equal(changed[0][0], changed[1][0]) and changed[1][1] < changed[0][1]
