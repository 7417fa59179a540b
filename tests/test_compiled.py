"""The compiled gradient step against the same step uncompiled, and what runs of one process share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from rgpo import gates
from rgpo.adaptive import AdaptiveSharpness
from rgpo.batch import Batch
from rgpo.curve import Gate
from rgpo.objective import Detached, surrogate
from rgpo.policies.actor_critic import ActorCritic
from rgpo.updates.minibatch_adam import MOST_GRAPHS
from rgpo.updates.sgd import SGD

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")


def learnt(policy: ActorCritic, batch: Batch, gate: Gate, compile: bool) -> Tensor:
    """The parameters after four epochs, with what the gate learns after each two."""
    update = SGD(num_epochs=2, num_minibatches=2, lr=1e-2, anneal_lr=False, compile=compile)
    update.setup(policy, partial(surrogate, gate=gate, ref_gate=gates.Open(), dual=Detached()), False, 2, 0)
    for _ in range(2):
        update(policy, batch, 0.0, lambda: None)
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
