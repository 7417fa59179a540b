"""The cost of a step in counts that do not depend on the machine: a slower path shows here before it shows on a clock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli import TINY
from tiny_policies import batch_of, make_sgd
from torch.utils._python_dispatch import TorchDispatchMode

from rgpo.cli.config import build, compose_jobs
from rgpo.language.policy.pretrained import load_causal_lm


class Counter(TorchDispatchMode):
    """Counts the operations that compute something: a detached tensor is its tensor, and how often autograd makes one differs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is not torch.ops.aten.detach.default
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], Any]) -> int:
    with Counter() as counter:
        function()
    return counter.count


def cartpole(*words: str) -> tuple[Any, Any, Any]:
    config = compose_jobs(["task=cartpole", "algo=ppo", "update.compile=false", *words], False, None)[0].config
    task, algorithm = build(config)
    task.setup(0, algorithm.requirements)
    policy = task.make_policy(0)
    algorithm.setup(policy, 10, 0)
    return task, algorithm, policy


def test_a_rollout_never_calls_torch() -> None:
    counts = []
    for steps in (32, 128):
        task, _, policy = cartpole("task.num_envs=2", f"task.num_steps={steps}")
        counts.append(operations(lambda task=task, policy=policy: task.collect(policy)))
    assert counts == [0, 0]


def test_a_gradient_step_is_one_forward_one_backward_and_one_flat_adam() -> None:
    """The cost of an iteration grows by the same number of operations with each gradient step, and by no more than 248."""
    counts = []
    for minibatches in (1, 2, 3):
        task, algorithm, policy = cartpole("task.num_envs=2", "task.num_steps=48", f"update.num_minibatches={minibatches}")
        rollout = task.collect(policy)
        counts.append(operations(lambda a=algorithm, p=policy, r=rollout: a.learn(p, r, False)))
    per_step = np.diff(counts) / 4  # epochs
    assert per_step[0] == per_step[1] <= 248


THREADS_OF_A_RUN = """
import threadpoolctl
from rgpo.cli.run import main
from rgpo.control.task import Control

collect = Control.collect

def observed(task, policy):
    print("threads", *{pool["num_threads"] for pool in threadpoolctl.threadpool_info()})
    return collect(task, policy)

Control.collect = observed
main()
"""


@pytest.mark.parametrize(("width", "given", "threads"), [(64, 1, 1), (64, 2, 1), (300, 2, 2)])
def test_numpy_and_torch_take_the_threads_a_run_was_given(width: int, given: int, threads: int, tmp_path: Path) -> None:
    """numpy takes every core when it is imported, waits for work by spinning, and divides its products by their number.

    Small networks compute on one thread, so that no run is slower with more, and all have the same bits.
    """
    env = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    words = [*TINY, "algo=ppo", "num_iterations=1", f"num_threads={given}", f"task.policy.hidden_sizes=[{width}]"]
    command = [sys.executable, "-c", THREADS_OF_A_RUN, *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert f"threads {threads}\n" in done.stdout


@pytest.mark.parametrize("lora", [False, True])
def test_forward_passes_of_a_language_iteration(make_language_model: Any, lora: bool) -> None:
    """Three micro-batches: two passes each for old and reference log-probabilities, one each to learn, one each to measure."""
    policy = make_language_model(lora=lora)
    calls = {"policy": 0, "reference": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    policy.backbone.register_forward_hook(count("policy"))
    if not lora:
        policy.reference.get_decoder().register_forward_hook(count("reference"))
    update = make_sgd(policy, num_epochs=2, num_minibatches=3)

    def total() -> int:
        done = sum(calls.values())
        calls.update(policy=0, reference=0)
        return done

    batch = batch_of(policy, num_minibatches=3)
    longest = batch.completions.completion_mask_BT.shape[1]
    assert total() <= longest + 2 * 3  # generation: the prompts once, then one token per pass
    update(policy, batch, 0.0)
    assert total() == 2 * (3 + 3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_computes_each_layer_again(tiny_checkpoint: Path, checkpointing: bool) -> None:
    words = ["task=qwen_rlhf", "scale=paper", f"task.gradient_checkpointing={checkpointing}", "task.max_new_tokens=6"]
    task, algorithm = build(compose_jobs(words, False, None)[0].config)
    model, _ = load_causal_lm(tiny_checkpoint, dtype="float32", device="cpu")
    task.assets = SimpleNamespace(model=model, tokenizer=None, eos_id=1, pad_id=1, stop_ids=frozenset())
    task.requirements = algorithm.requirements
    policy = task.make_policy(0)
    calls: list[int] = []
    for layer in policy.backbone.layers:
        layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
    (minibatch,) = batch_of(policy, num_minibatches=1).minibatches()
    calls.clear()
    policy.forward(minibatch.views[0]).logp.sum().backward()
    assert len(calls) == len(policy.backbone.layers) * (2 if checkpointing else 1)


def test_a_token_costs_no_vocabulary_sized_table() -> None:
    """1,024 tokens x 60,000 words, forward and backward: no tensor of more than a tenth of the logits' size is ever made."""
    from rgpo.language.policy.logprobs import token_statistics

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                Largest.largest = max(Largest.largest, out.numel())
            return out

    head = torch.nn.Linear(4, 60_000, bias=False)
    hidden = torch.randn(1024, 4, requires_grad=True)
    with Largest():
        statistics = token_statistics(hidden, head, torch.arange(1024))
        (statistics.logp_N.sum() + statistics.entropy_N.sum()).backward()
    assert Largest.largest <= 1024 * 60_000 / 10
