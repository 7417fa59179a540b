"""The gate whose sharpness follows the KL divergence."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rgpo import gates
from rgpo.core.adaptive_gate import AdaptiveSharpness
from rgpo.core.gate import Gate
from rgpo.core.surrogate import Detached
from rgpo.errors import ConfigError

SETTINGS = {"kl_target": 0.01, "rate": 0.2, "min_sharpness": 1.0, "max_sharpness": 60.0}
ADAPTABLE = [(gates.Sigmoid, {}), (gates.SigmoidLog, {}), (gates.SignAwareSigmoid, {"cap": 3.0})]
ADAPTABLE += [(gates.GaussianLog, {}), (gates.Power, {"center": 1.0})]


def test_adaptive_sharpness_takes_the_written_step_and_stays_within_its_bounds() -> None:
    gate = AdaptiveSharpness(gate=gates.SignAwareSigmoid(sharpness=10.0, cap=3.0), **SETTINGS)
    for kl, step in ((0.015, 0.5), (0.0, -1.0), (0.5, 1.0), (0.01, 0.0), (0.004, -0.6)):
        before = gate.sharpness
        gate.observe(kl)
        assert gate.sharpness == pytest.approx(before * math.exp(0.2 * step))
    for kl, bound in ((1.0, 60.0), (0.0, 1.0)):
        for _ in range(40):
            gate.observe(kl)
        assert gate.sharpness == bound


@pytest.mark.parametrize("scale", ["none", "unit"])
@pytest.mark.parametrize(("cls", "others"), ADAPTABLE, ids=[cls.__name__ for cls, _ in ADAPTABLE])
def test_adaptive_sharpness_is_the_gate_of_its_present_sharpness(cls: type[Gate], others: dict[str, float], scale: str) -> None:
    gate = AdaptiveSharpness(gate=cls(sharpness=4.0, scale=scale, **others), **(SETTINGS | {"max_sharpness": 30.0}))
    live = vars(gate._live)["sharpness"]
    d = torch.linspace(-1, 1, 9)
    advantage = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1])
    for kl in (1.0, 1.0, 0.0):
        before = gate(d, advantage)
        gate.observe(kl)
        plain = cls(sharpness=gate.sharpness, scale=scale, **others)
        assert not torch.equal(gate(d, advantage), before)
        torch.testing.assert_close(gate(d, advantage), plain(d, advantage))
        assert gate.weight_at_one() == pytest.approx(plain.weight_at_one(), rel=1e-6)
        assert gate.scale == scale
    assert vars(gate._live)["sharpness"] is live  # one tensor all along: a compiled step sees it change
    assert live.item() == pytest.approx(gate.sharpness)


def test_a_huge_rate_moves_to_a_bound() -> None:
    gate = AdaptiveSharpness(gate=gates.Sigmoid(sharpness=10.0), **(SETTINGS | {"rate": 1e30}))
    gate.observe(1.0)
    assert gate.sharpness == 60.0
    gate.observe(0.0)
    assert gate.sharpness == 1.0


def test_scale_unit_needs_a_slope_at_both_bounds() -> None:
    power = gates.Power(sharpness=4.0, center=1.0, scale="unit")
    with pytest.raises(ConfigError, match=r"gate\.scale=unit: Power has no positive w\(1\)"):
        AdaptiveSharpness(gate=power, **(SETTINGS | {"max_sharpness": 1000.0}))


def test_adaptive_sharpness_round_trips() -> None:
    gate, other = (AdaptiveSharpness(gate=gates.Sigmoid(sharpness=10.0, scale="unit"), **SETTINGS) for _ in range(2))
    gate.observe(0.2)
    other.load_state_dict(gate.state_dict())
    d = torch.linspace(-1, 1, 9)
    assert other.state_dict() == gate.state_dict() == {"sharpness": pytest.approx(10 * math.exp(0.2))}
    assert torch.equal(gate(d, d), other(d, d))
    gate.observe(0.2)
    assert gate.sharpness > other.sharpness


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"gate": gates.Identity()}, r"gate\.gate=Identity: needs a gate with exactly one sharpness"),
        ({"gate": gates.Sapo(sharpness=1.0, sharpness_neg=1.05)}, r"gate\.gate=Sapo: needs a gate with exactly one sharpness"),
        ({"gate": Detached()}, r"gate\.gate=Detached: needs a gate with exactly one sharpness"),
        ({"gate": gates.SigmoidMatched(sharpness=10.0)}, r"gate\.gate=SigmoidMatched: .*choose SigmoidLog"),
        ({"gate": gates.Budget(sharpness=5.0, budget=0.75)}, r"gate\.gate=Budget: .*choose SigmoidLog"),
        *[({"kl_target": x}, rf"gate\.kl_target={x}: must be a positive, finite number") for x in (0.0, math.nan, math.inf)],
        *[({"rate": x}, rf"gate\.rate={x}: must be a positive, finite number") for x in (-0.1, math.inf)],
        ({"min_sharpness": 60.0}, r"gate\.min_sharpness=60\.0: must be below max_sharpness=60\.0"),
        ({"min_sharpness": 0.0}, r"gate\.min_sharpness=0\.0: must be a positive, finite number"),
        ({"max_sharpness": math.inf}, r"gate\.max_sharpness=inf: must be a positive, finite number"),
        ({"gate": gates.Sigmoid(sharpness=100.0)}, r"sharpness=100\.0: "),  # outside [1, 60], the bounds of k
    ],
    ids=lambda x: str(x)[:60] if isinstance(x, str) else None,
)
def test_adaptive_sharpness_refuses(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        AdaptiveSharpness(**{"gate": gates.Sigmoid(sharpness=10.0), **SETTINGS, **fields})


def test_plain_gates_have_no_state() -> None:
    gate = gates.Sigmoid(sharpness=10.0)
    gate.observe(1.0)
    gate.load_state_dict({})
    assert gate.state_dict() == {}
    assert gate == gates.Sigmoid(sharpness=10.0)
