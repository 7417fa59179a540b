"""The compiled gradient step against the same step uncompiled, and what runs of one process share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import TINY
from torch import Tensor
from torch._inductor.exc import CppCompileError

from rgpo.control.actor_critic import ActorCritic
from rgpo.core import gates
from rgpo.core.adaptive_gate import AdaptiveSharpness
from rgpo.core.gate import Gate
from rgpo.core.rollout import Batch
from rgpo.core.surrogate import Detached, surrogate
from rgpo.learning import minibatch_adam
from rgpo.learning.minibatch_adam import MOST_GRAPHS
from rgpo.learning.natural_gradient import NaturalGradient
from rgpo.learning.sgd import SGD

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")


def learnt(policy: ActorCritic, batch: Batch, gate: Gate, compile: bool | str) -> Tensor:
    """The parameters after four epochs, with what the gate learns after each two."""
    update = SGD(num_epochs=2, num_minibatches=2, lr=1e-2, anneal_lr=False, compile=compile)
    update.setup(policy, partial(surrogate, gate=gate, ref_gate=gates.Open(), dual=Detached()), False, 2, 0)
    for _ in range(2):
        update(policy, batch, 0.0)
        gate.observe(1.0)  # far above the target: an adaptive gate becomes sharper
    return policy.parameters


def test_compiled_steps_are_the_plain_ones_whatever_ran_before(
    make_policy: Callable[..., ActorCritic], make_batch: Callable[..., Batch]
) -> None:
    """One process, several runs: none may see a constant of another, and equal ones share their graph."""
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before, seen, results = graphs["unique_graphs"], [], []
    settings: list[Callable[[], Gate]] = [
        lambda: gates.SigmoidSigned(sharpness=3.0),
        lambda: gates.SigmoidSigned(sharpness=30.0),
        lambda: AdaptiveSharpness(gate=gates.SigmoidSigned(sharpness=3.0), rate=1.0),
        lambda: gates.SigmoidSigned(sharpness=3.0),
    ]
    for make_gate in settings:
        plain, compiled = make_policy(), make_policy()
        batch = make_batch(plain, 32)
        expected, found = learnt(plain, batch, make_gate(), False), learnt(compiled, batch, make_gate(), True)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        results.append(expected.clone())
        seen.append(graphs["unique_graphs"] - before)
    assert (results[0] - results[1]).abs().max() > 1e-4
    assert (results[0] - results[2]).abs().max() > 1e-4
    assert seen == [1, 2, 3, 3]
    assert torch._dynamo.config.recompile_limit == MOST_GRAPHS


def test_a_compiled_critic_is_the_plain_one(make_policy: Callable[..., ActorCritic], make_batch: Callable[..., Batch]) -> None:
    """TRPO's critic: eight minibatches and no clip of the gradient, which is another graph."""
    found = []
    for compile in (False, True):
        policy = make_policy(discrete=True)
        batch = make_batch(policy, 64)
        update = NaturalGradient(critic_epochs=3, critic_minibatches=8, critic_lr=1e-2, compile=compile)
        objective = partial(surrogate, gate=gates.Identity(), ref_gate=gates.Open(), dual=Detached())
        update.setup(policy, objective, False, 1, 0)
        before = policy.parameters.clone()
        loss = update(policy, batch, 0.0)[0]["loss/value"]
        assert (policy.parameters - before).abs().max() > 1e-2
        found.append(torch.cat([policy.parameters, torch.tensor([loss])]))
    torch.testing.assert_close(*found, rtol=0, atol=2e-6)


def test_a_compiled_penalised_step_is_the_plain_one(
    make_policy: Callable[..., ActorCritic], make_batch: Callable[..., Batch]
) -> None:
    """Four minibatches with the exact KL in the loss and an entropy bonus; the statistics of every step agree, too."""
    found = []
    for compile in (False, True):
        policy = make_policy()
        batch = make_batch(policy, 64)
        update = SGD(num_epochs=3, num_minibatches=4, lr=1e-2, ent_coef=0.01, value_clip=0.2, max_grad_norm=0.5, compile=compile)
        objective = partial(surrogate, gate=gates.Clip(), ref_gate=gates.Open(), dual=Detached())
        update.setup(policy, objective, True, 2, 0)
        statistics, after = update(policy, batch, 0.3)
        found.append(torch.cat([policy.parameters, torch.tensor(list(statistics.values())), *(x.flatten() for x in after[:3])]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=2e-6)


def test_compiled_code_is_kept(make_policy: Callable[..., ActorCritic], make_batch: Callable[..., Batch]) -> None:
    """Another process finds it: torch does not keep code with every operation, which would cost each run of a sweep anew."""
    for _ in range(2):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        policy = make_policy()
        learnt(policy, make_batch(policy, 32), gates.Clip(), compile=True)
    counters = torch._dynamo.utils.counters
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert counters["aot_autograd"]["autograd_cache_bypass"] == counters["inductor"]["fxgraph_cache_bypass"] == 0


BROKEN_COMPILER = """#!/bin/sh
case "$*" in *--version*) exec {real} "$@";; esac
exit 1
"""


def test_a_compiler_that_fails_is_one_sentence(tmp_path: Path) -> None:
    """The case that must fail: g++ without Python's headers, for example; update.compile=true was asked for."""
    broken = tmp_path / "g++"
    broken.write_text(BROKEN_COMPILER.format(real=shutil.which("g++")))
    broken.chmod(0o755)
    env = os.environ | {"CXX": str(broken), "RGPO_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "rgpo.cli.run", *TINY, "algo=ppo", "num_iterations=1", "update.compile=true"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "update.compile: the C++ compiler failed" in done.stderr and "set update.compile=false" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_where_compiling_was_no_order_the_run_goes_on_without(
    make_policy: Callable[..., ActorCritic], make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CppCompileError(["g++"], "no Python.h")

    monkeypatch.setattr(minibatch_adam, "_compile", lambda function: refuse)
    monkeypatch.setattr(minibatch_adam, "ENOUGH_STEPS", 1)
    plain, tried = make_policy(), make_policy()
    batch = make_batch(plain, 32)
    expected = learnt(plain, batch, gates.SigmoidSigned(sharpness=3.0), False)
    with pytest.warns(UserWarning, match="goes on uncompiled"):
        found = learnt(tried, batch, gates.SigmoidSigned(sharpness=3.0), "auto")
    assert torch.equal(found, expected)
