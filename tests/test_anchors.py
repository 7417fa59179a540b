"""Penalties that are not a task's default: the old policy as the anchor, and estimators from samples on control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TinyRun

from rgpo.cli.build import build
from rgpo.cli.config import compose_jobs
from rgpo.errors import ConfigError


@pytest.mark.parametrize("estimator", ["unbiased", "k2", "k3"])
@pytest.mark.parametrize("anchor", ["reference", "old"])
@pytest.mark.parametrize("algo", ["rgpo", "p3o"])
def test_every_estimator_and_anchor_learns_and_logs_the_kl(algo: str, anchor: str, estimator: str, tiny_checkpoint: Path) -> None:
    words = (f"penalty.anchor={anchor}", f"penalty.estimator={estimator}")
    run = TinyRun(tiny_checkpoint, algo, *words)
    for _ in range(2):
        metrics = run.iterate()
    gap = abs(metrics["kl/ref_unbiased"] - metrics["kl/ref_exact"])  # over all tokens and over the stored ones
    assert gap < 6 * metrics["kl/ref_unbiased_se"] and metrics["kl/ref_unbiased"] > 0
    assert all(torch.isfinite(p).all() for p in run.policy.parameters())


def test_the_estimator_and_the_anchor_change_the_steps(tiny_checkpoint: Path) -> None:
    found = []
    for words in ("estimator=unbiased", "estimator=k2", "estimator=k3", "anchor=old"):
        run = TinyRun(tiny_checkpoint, "p3o", f"penalty.{words}", "penalty.coef=2.0")
        for _ in range(2):
            run.iterate()
        found.append(torch.cat([x.flatten() for x in run.policy.state_dict().values()]))
    distinct = [not torch.equal(x, y) for i, x in enumerate(found) for y in found[:i]]
    assert all(distinct)


@pytest.mark.parametrize(("anchor", "key"), [("old", "kl/old_exact"), ("reference", "kl/ref_exact")])
def test_the_adaptive_coefficient_observes_the_kl_from_its_anchor(
    anchor: str, key: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TinyRun(tiny_checkpoint, "rgpo", f"penalty.anchor={anchor}")
    seen: list[float] = []
    monkeypatch.setattr(run.algorithm.penalty, "observe", seen.append)
    metrics = [run.iterate() for _ in range(2)]
    assert seen == [row[key] for row in metrics] and seen[1] > 0


@pytest.mark.parametrize(
    ("words", "estimator", "anchor"),
    [
        (("algo=rgpo", "task=qwen_rlhf"), "unbiased", "reference"),
        (("algo=ppo_kl", "task=qwen_rlhf"), "unbiased", "reference"),
        (("algo=p3o", "task=qwen_rlhf"), "unbiased", "reference"),
        (("algo=grpo", "task=qwen_rlhf"), "k3", "reference"),
        (("algo=grpo", "task=qwen_rlhf", "penalty=adaptive"), "k3", "reference"),
        (("algo=rgpo", "task=hopper"), "exact", "old"),
        (("algo=p3o", "task=cartpole"), "exact", "old"),
        (("algo=rgpo", "task=cartpole", "penalty.estimator=k3"), "k3", "old"),
    ],
)
def test_defaults(words: tuple[str, ...], estimator: str, anchor: str) -> None:
    _, algorithm = build(compose_jobs(list(words), False, None)[0].config)
    divergence: Any = algorithm.penalty.divergence
    assert (divergence.estimator, divergence.anchor) == (estimator, anchor)
    assert f"estimator={estimator}, anchor={anchor}" in algorithm.describe()["penalty"]


def test_control_has_no_reference_to_anchor_to() -> None:
    for words in (
        ["algo=rgpo", "penalty.anchor=reference", "penalty.estimator=unbiased"],
        ["algo=p3o", "penalty.anchor=reference"],
    ):
        with pytest.raises(ConfigError, match=r"^penalty\.anchor"):
            compose_jobs(["task=cartpole", *words], False, None)


@pytest.mark.parametrize("estimator", ["unbiased", "k2", "k3"])
def test_an_estimate_from_samples_holds_control_as_the_exact_kl_does(estimator: str, make_policy: Any, make_batch: Any) -> None:
    """One large step on one batch, with and without the penalty."""
    from update_parts import load_gate, setup, sgd

    from rgpo.core.kl_penalty import Divergence

    kl = {}
    for coef in (0.0, 10.0):
        policy = make_policy()
        update = sgd(num_epochs=20, num_minibatches=4, lr=1e-2, anneal_lr=False)
        setup(update, policy, load_gate("identity"), divergence=Divergence(estimator=estimator, anchor="old"))
        _, shift = update(policy, make_batch(policy, 256), coef)
        kl[coef] = shift.kl[-1].mean().item()
    assert np.isfinite(kl[0.0]) and kl[10.0] < 0.2 * kl[0.0]
