"""Gates with more inputs are traced as one graph; test_compiled.py compiles one of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gate_options import NAMES, load_gate
from torch import Tensor

from rgpo.core import gates
from rgpo.core.surrogate import Detached, GateObjective

MORE_INPUTS = [name for name in NAMES if (gate := load_gate(name)).needs_logp_old or gate.needs_batch]


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
