"""Gates with more inputs in compiled steps: the same numbers as uncompiled."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from gate_options import NAMES, load_gate
from test_compiled import trained
from torch import Tensor

from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlBatch
from rgpo.core import gates
from rgpo.core.surrogate import Detached, GateObjective
from rgpo.learning.accel import compiled_adam

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
MORE_INPUTS = [name for name in NAMES if (gate := load_gate(name)).needs_logp_old or gate.needs_batch]


@needs_compiler
def test_compiled_steps_equal_eager_ones(
    make_policy: Callable[..., ActorCritic],
    make_batch: Callable[..., ControlBatch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled_adam, "_traced_runs", itertools.count())
    name = "m2po"  # a sort within the graph
    eager, compiled = make_policy(), make_policy()
    batch = make_batch(eager, 32)
    expected, found = trained(eager, batch, load_gate(name), False), trained(compiled, batch, load_gate(name), True)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", [*MORE_INPUTS, "vespo", "topr"])
def test_gates_are_traced_as_one_graph(name: str) -> None:
    """Loss and gradient through torch's tracer without its code generation."""
    objective = GateObjective(gate=load_gate(name), ref_gate=gates.Open(), combine=Detached())

    def loss(d: Tensor, a: Tensor, logp: Tensor) -> Tensor:
        return objective(d, d, a, d * 0, kl_coef=0.0, logp_old=logp)[0].mean()

    generator = torch.Generator().manual_seed(0)
    d, a = torch.randn(2, 64, generator=generator)
    logp = -torch.rand(64, generator=generator)
    step = partial(torch.func.grad_and_value(loss), 0.5 * d, a, logp)
    expected = step()
    torch.compiler.reset()
    found = torch.compile(step, backend="eager", fullgraph=True)()
    torch.testing.assert_close(found, expected)
