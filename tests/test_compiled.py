"""Compiled gradient steps against the same steps uncompiled, and the graphs that runs of one process share."""

from __future__ import annotations

import getpass
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cli import TINY
from gate_options import load_gate
from torch import Tensor
from torch._inductor.exc import CppCompileError
from update_parts import EXACT

from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlBatch
from rgpo.core import gates
from rgpo.core.adaptive_gate import AdaptiveSharpness
from rgpo.core.gate import Gate
from rgpo.core.kl_penalty import Divergence
from rgpo.core.surrogate import Detached, GateObjective
from rgpo.errors import ConfigError
from rgpo.learning.accel import ahead, compiled_adam
from rgpo.learning.accel.compiled_adam import MOST_GRAPHS, resolve
from rgpo.learning.alike import num_alike
from rgpo.learning.flat_adam import loop
from rgpo.learning.loss import GateLoss
from rgpo.learning.natural_gradient import NaturalGradient
from rgpo.learning.sgd import SGD

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
MakePolicy = Callable[..., ActorCritic]
MakeBatch = Callable[..., ControlBatch]
CLIP = gates.Clip(eps_low=0.2, eps_high=0.2, cap=None, scale="none")


def sigmoid(sharpness: float) -> Gate:
    return gates.SignAwareSigmoid(sharpness=sharpness, cap=3.0, scale="none")


def sgd(policy: ActorCritic, gate: Gate, compile: bool | str, *, divergence: Divergence | None = None, **change: Any) -> SGD:
    """Two epochs of two minibatches, set up for two iterations."""
    knobs = {"num_epochs": 2, "num_minibatches": 2, "lr": 1e-2, "anneal_lr": False, "adam_eps": 1e-5, "max_grad_norm": 0.5}
    knobs |= {"clip_jointly": True, "vf_coef": 0.5, "ent_coef": 0.0, "value_clip": 0.2}
    update = SGD(**(knobs | change), compile=compile)
    objective = GateObjective(gate=gate, ref_gate=gates.Open(), combine=Detached())
    update.setup(policy, GateLoss(objective=objective, divergence=divergence), normalize="minibatch", num_iterations=2, seed=0)
    return update


def trained(policy: ActorCritic, batch: ControlBatch, gate: Gate, compile: bool | str) -> Tensor:
    """The parameters after two iterations, with one adaptation of the gate after each."""
    update = sgd(policy, gate, compile)
    for _ in range(2):
        update(policy, batch, 0.0)
        gate.observe(1.0)  # far above the target: an adaptive gate becomes sharper
    return policy.flat


def test_compiled_steps_equal_eager_ones_after_any_other_run(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several runs in one process: none may use a constant of another, and equal ones share their graph."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # without what earlier processes compiled
    monkeypatch.setattr(compiled_adam, "_traced_runs", itertools.count())  # every MOST_GRAPHS runs graphs are dropped
    graphs = torch._dynamo.utils.counters["stats"]
    before, seen, results = graphs["unique_graphs"], [], []
    settings: list[Callable[[], Gate]] = [
        lambda: sigmoid(3.0),
        lambda: sigmoid(30.0),
        lambda: load_gate("m2po"),  # a sort within the graph
        lambda: AdaptiveSharpness(gate=sigmoid(3.0), kl_target=0.01, rate=1.0, min_sharpness=1.0, max_sharpness=60.0),
        lambda: sigmoid(3.0),
    ]
    for make_gate in settings:
        eager, compiled = make_policy(), make_policy()
        batch = make_batch(eager, 32)
        expected, found = trained(eager, batch, make_gate(), False), trained(compiled, batch, make_gate(), True)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
        results.append(expected.clone())
        seen.append(graphs["unique_graphs"] - before)
    assert (results[0] - results[1]).abs().max() > 1e-4
    assert (results[0] - results[3]).abs().max() > 1e-4
    assert seen == [1, 2, 3, 4, 4]
    assert torch._dynamo.config.recompile_limit == MOST_GRAPHS


def test_a_compiled_critic_equals_the_eager_one(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    """TRPO's critic: eight minibatches and no clip of the gradient, which is another graph."""
    found = []
    for compile in (False, True):
        policy = make_policy(discrete=True)
        batch = make_batch(policy, 64)
        knobs = {"kl_max": 0.01, "cg_iterations": 10, "cg_damping": 0.1, "line_search_shrink": 0.8, "line_search_tries": 10}
        update = NaturalGradient(**knobs, critic_epochs=3, critic_minibatches=8, critic_lr=1e-2, compile=compile)
        objective = GateObjective(gate=gates.Identity(), ref_gate=gates.Open(), combine=Detached())
        update.setup(policy, GateLoss(objective=objective, divergence=None), normalize="minibatch", num_iterations=1, seed=0)
        before = policy.flat.clone()
        loss = update(policy, batch, 0.0)[0]["loss/value"]
        assert (policy.flat - before).abs().max() > 1e-2
        found.append(torch.cat([policy.flat, torch.tensor([loss])]))
    torch.testing.assert_close(*found, rtol=0, atol=2e-6)


def test_a_compiled_penalized_step_equals_the_eager_one(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    """Four minibatches with the exact KL in the loss and an entropy bonus; metrics and policy shift agree, too."""
    found = []
    for compile in (False, True):
        policy = make_policy()
        batch = make_batch(policy, 64)
        change = {"num_epochs": 3, "num_minibatches": 4, "ent_coef": 0.01, "anneal_lr": True}
        update = sgd(policy, CLIP, compile, divergence=EXACT, **change)
        metrics, shift = update(policy, batch, 0.3)
        measured = (shift.log_ratio, shift.kl, shift.entropy)
        found.append(torch.cat([policy.flat, torch.tensor(list(metrics.values())), *(x.flatten() for x in measured)]))
    torch.testing.assert_close(*found, rtol=1e-5, atol=2e-6)


def test_compiled_code_is_found_again_in_one_process(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    """Also that of a gate whose sharpness is a tensor and changes between calls."""
    adaptive = AdaptiveSharpness(gate=sigmoid(3.0), kl_target=0.01, rate=1.0, min_sharpness=1.0, max_sharpness=60.0)
    for _ in range(2):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        policy = make_policy()
        trained(policy, make_batch(policy, 32), adaptive, compile=True)
    counters = torch._dynamo.utils.counters
    assert counters["aot_autograd"]["autograd_cache_hit"] == 1
    assert counters["aot_autograd"]["autograd_cache_bypass"] == counters["inductor"]["fxgraph_cache_bypass"] == 0


LEARN_ONCE = """
import torch
from rgpo.cli.config import build, compose_jobs
words = ["task=cartpole", "algo=ppo", "gate=adaptive_sign_aware", "update.compile=true", "task.num_envs=2", "task.num_steps=32"]
task, algorithm = build(compose_jobs(words, False, None)[0].config)
task.setup(0, algorithm.requirements)
policy = task.make_policy(0)
algorithm.setup(policy, 10, 0)
algorithm.learn(policy, task.collect(policy), False)
print(algorithm.note, dict(torch._dynamo.utils.counters["aot_autograd"]))
"""


def test_compiled_code_is_cached_on_disk(tmp_path: Path) -> None:
    """Another process finds it, also that of a gate whose sharpness is a tensor, which each process traces."""
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "RGPO_CACHE": str(tmp_path / "rgpo")}
    command = [sys.executable, "-c", LEARN_ONCE]
    first, second = (subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert "'autograd_cache_miss': 1" in first and "'autograd_cache_saved': 1" in first, first
    assert "'autograd_cache_hit': 1" in second and "miss" not in second and "bypass" not in second, second


def test_a_library_is_loaded_without_the_compiler(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of a warm start: no tracing, and the same bits. Headers are not compiled apart, where all users can write."""
    headers = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}" / "precompiled_headers"
    found, before = [], sorted(headers.glob("*"))
    for attempt in range(2):
        policy = make_policy()
        if attempt:
            monkeypatch.setattr(compiled_adam, "engine", None)
        found.append(trained(policy, make_batch(policy, 32), CLIP, compile=True))
    assert torch.equal(*found)
    assert sorted(headers.glob("*")) == before


def test_a_library_belongs_to_all_that_its_function_reads(make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number, the sources and the threads; what cannot be described is traced."""

    def described(gate: Gate, **change: Any) -> str | None:
        return ahead.description(sgd(make_policy(), gate, False, **change).optimizer._function)

    texts = [described(sigmoid(3.0)), described(sigmoid(3.5)), described(CLIP), described(CLIP, max_grad_norm=0.25)]
    texts += [described(CLIP, adam_eps=1e-6), described(CLIP, vf_coef=0.4), described(CLIP, clip_jointly=False)]
    monkeypatch.setattr(ahead, "_surroundings", lambda: "other sources")
    texts += [described(CLIP)]
    assert None not in texts and len(set(texts)) == len(texts)
    adaptive = AdaptiveSharpness(gate=sigmoid(3.0), kl_target=0.01, rate=1.0, min_sharpness=1.0, max_sharpness=60.0)
    assert described(adaptive) is None and described(Untraceable(sharpness=3.0)) is None


def test_auto_decides_by_cost(make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 gradient steps with cached code, else 8,000, counting all runs that share it; a resumed run continues as it began."""

    def decision(steps: int, gate: Gate = CLIP) -> tuple[bool, str]:
        function = sgd(make_policy(), gate, False).optimizer._function
        return resolve("auto", steps, compiled_adam.CompiledEpochs(function, loop))

    other = gates.Clip(eps_low=0.125, eps_high=0.25, cap=None, scale="none")  # never compiled
    policy = make_policy()
    trained(policy, make_batch(policy, 32), CLIP, compile=True)
    assert decision(1_499) == (False, "not compiled: 1,499 gradient steps are too few to pay for it")
    assert decision(1_500) == (True, "compiled: its code is cached, which pays from 1,500 gradient steps on")
    assert decision(7_999, other)[0] is False and "7,999 gradient steps, which pays from 8,000 on" in decision(7_999, other)[1]
    assert decision(8_000, other) == (True, "compiled: 8,000 gradient steps, which pays from 8,000 on")
    token = num_alike.set(4)
    assert decision(2_000, other) == (True, "compiled: 4 runs of 2,000 gradient steps share the code, which pays from 8,000 on")
    num_alike.reset(token)
    saved = sgd(make_policy(), CLIP, True).state_dict()
    resumed = sgd(make_policy(), CLIP, "auto")
    assert not resumed.optimizer.compiled
    resumed.load_state_dict(saved)
    assert resumed.optimizer.compiled and resumed.note == "compiled, like the run's checkpoint"
    monkeypatch.setattr(compiled_adam, "STEPS_CACHED", 1)
    resumed = sgd(make_policy(), CLIP, "auto")
    assert resumed.optimizer.compiled
    resumed.load_state_dict(sgd(make_policy(), CLIP, False).state_dict())
    assert not resumed.optimizer.compiled and resumed.note == "not compiled, like the run's checkpoint"


@dataclass(frozen=True, kw_only=True)
class Untraceable(gates.Sigmoid):
    """A sigmoid that calls a function in C, into which torch cannot look."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return super().curve(d, advantage) + zlib.crc32(b"")


@dataclass(frozen=True, kw_only=True)
class Raising(gates.Sigmoid):
    """A mistake of the user's own."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        raise KeyError("budget")


def test_a_gate_that_torch_cannot_trace_leaves_the_run_uncompiled(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On true it is an error in one sentence; an error of the gate itself is raised as it is."""
    monkeypatch.setattr(compiled_adam, "STEPS_NEW", 1)
    monkeypatch.setattr(compiled_adam, "STEPS_CACHED", 1)
    eager, tried = make_policy(), make_policy()
    batch = make_batch(eager, 32)
    gate = Untraceable(sharpness=3.0)
    expected = trained(eager, batch, gate, False)
    with pytest.warns(UserWarning, match=r"torch cannot compile this update \(.*zlib\.crc32.*; the run continues uncompiled"):
        found = trained(tried, batch, gate, "auto")
    assert torch.equal(found, expected)
    with pytest.raises(
        ConfigError, match=r"^update\.compile=true: torch cannot compile this update \(.*zlib\.crc32.*, or use auto\.$"
    ):
        trained(make_policy(), batch, gate, True)
    with pytest.raises(KeyError, match="budget"):
        trained(make_policy(), batch, Raising(sharpness=3.0), True)


BROKEN_COMPILER = """#!/bin/sh
case "$*" in *--version*) exec {real} "$@";; esac
exit 1
"""


def test_a_failing_compiler_is_reported_in_one_line(tmp_path: Path) -> None:
    """The case that must fail: update.compile=true and, for example, g++ without Python's headers."""
    broken = tmp_path / "g++"
    broken.write_text(BROKEN_COMPILER.format(real=shutil.which("g++")))
    broken.chmod(0o755)
    env = os.environ | {"CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "rgpo.cli.run", *TINY, "algo=ppo", "num_iterations=1", "update.compile=true"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "update.compile=true: the C++ compiler failed" in done.stderr and "or use auto." in done.stderr
    logged = "No CUDA runtime is found"  # by torch for CUDA on a machine without one
    assert len([line for line in done.stderr.strip().splitlines() if logged not in line]) == 1


def test_on_auto_a_failing_compiler_leaves_the_run_uncompiled(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(compiled_adam.CompiledEpochs):
        def __call__(self, *_: Any) -> None:
            raise CppCompileError(["g++"], "no Python.h")

    monkeypatch.setattr(compiled_adam, "CompiledEpochs", Refusing)
    monkeypatch.setattr(compiled_adam, "STEPS_NEW", 1)
    monkeypatch.setattr(compiled_adam, "STEPS_CACHED", 1)
    eager, tried = make_policy(), make_policy()
    batch = make_batch(eager, 32)
    expected = trained(eager, batch, sigmoid(3.0), False)
    with pytest.warns(UserWarning, match=r"the C\+\+ compiler failed .*; the run continues uncompiled"):
        found = trained(tried, batch, sigmoid(3.0), "auto")
    assert torch.equal(found, expected)
