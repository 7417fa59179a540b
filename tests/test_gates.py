"""Gates against the closed forms of their weights, in every dtype; and the naive formula that must fail."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from gate_options import NAMES, load_gate
from torch import Tensor

from rgpo import gates
from rgpo.errors import ConfigError
from rgpo.gates import AdaptiveSharpness, Gate, weight

every_gate = pytest.mark.parametrize("name", NAMES)
both_signs = pytest.mark.parametrize("sign", [1.0, -1.0])
IN_UNIT_INTERVAL = ["sigmoid", "sigmoid_log", "sigmoid_matched", "gaussian_log", "erf", "arctan", "softsign", "tanh"]
IN_UNIT_INTERVAL += ["power", "rational", "open", "p3o", "cdf"]
KINKS = [math.log(x) for x in (1 / 3, 0.6, 7 / 9, 0.8, 1.2, 11 / 9, 1.4, 3.0, 20.0)] + [0.0]
LOGP_OLD = math.log(0.5)


def unit(gate: Any) -> Any:
    """The same gate with scale=unit."""
    if isinstance(gate, AdaptiveSharpness):
        return replace(gate, gate=replace(gate.gate, scale="unit"))
    return replace(gate, scale="unit")


def grid(low: float, high: float, num: int = 4001) -> Tensor:
    return torch.linspace(low, high, num, dtype=torch.float64)


def value_of(gate: Any, d: Tensor, sign: float = 1.0) -> Tensor:
    """g with the old probability 1/2."""
    value: Tensor = gate(d, torch.full_like(d, sign), torch.full_like(d, LOGP_OLD))
    return value


def weights(gate: Any, d: Tensor, sign: float = 1.0) -> Tensor:
    return weight(gate, d, torch.full_like(d, sign), torch.full_like(d, LOGP_OLD))


def sech2(x: Tensor) -> Tensor:
    return 1 / torch.cosh(x).square()


@every_gate
@both_signs
def test_weight_is_the_slope_of_the_value(name: str, sign: float) -> None:
    gate, h = load_gate(name), 1e-5
    if gate.needs_batch or name == "dppo_kl":  # bounds move with the batch; a mask without a closed form
        return
    d = grid(-4.0, 4.0, 397)
    d = d[(d[:, None] - torch.tensor(KINKS)).abs().amin(1) > 1e-3]
    central = (value_of(gate, d + h, sign) - value_of(gate, d - h, sign)) / (2 * h)
    torch.testing.assert_close(weights(gate, d, sign), central, rtol=1e-6, atol=2e-8)


@every_gate
def test_scale_unit_gives_weight_one_at_one_or_is_refused(name: str) -> None:
    gate = load_gate(name)
    at_one = weights(gate, torch.zeros((), dtype=torch.float64)).item()
    assert gate.weight_at_one() == pytest.approx(at_one, rel=1e-6)
    if name in ("open", "budget"):
        with pytest.raises(ConfigError, match=r"gate\.scale=unit: .*scale=none"):
            unit(gate)
        return
    scaled, d = unit(gate), grid(-2.0, 2.0, 101)
    assert scaled.weight_at_one() == pytest.approx(1.0, rel=1e-6)
    assert weights(scaled, torch.zeros((), dtype=torch.float64)).item() == pytest.approx(1.0, rel=1e-6)
    torch.testing.assert_close(value_of(scaled, d) * at_one, value_of(gate, d), rtol=1e-6, atol=1e-12)


@every_gate
@both_signs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_value_and_slope_are_finite_and_keep_their_dtype(name: str, sign: float, dtype: torch.dtype) -> None:
    gate = load_gate(name)
    d = torch.cat([grid(-300, 300, 2401), grid(-3, 3, 601), torch.tensor([88.0, 88.8, 89.0, -104.0])]).to(dtype)
    value, slope = value_of(gate, d, sign), weights(gate, d, sign)
    assert value.dtype == slope.dtype == dtype
    assert value.shape == slope.shape == d.shape
    assert value.isfinite().all()
    assert slope.isfinite().all()


EXTREME = [5e-324, 1e-300, 1e-45, 1e-30, 1e-6, 1e-3, 1 - 1e-16, 1.0]
EXTREME += [1 + 3e-16, 1e3, 1e6, 1e20, 1e30, 1e38, 1e300, math.inf, math.nan]


@pytest.mark.parametrize("scale", ["none", "unit"])
@pytest.mark.parametrize("value", EXTREME)
@every_gate
def test_an_extreme_parameter_is_refused_or_leaves_value_and_slope_finite(name: str, value: float, scale: str) -> None:
    node = load_gate(name)
    inner = node.gate if isinstance(node, AdaptiveSharpness) else node
    for key in (field.name for field in fields(inner) if field.name != "scale"):
        try:
            gate = replace(inner, **{key: value, "scale": scale})
            if isinstance(node, AdaptiveSharpness):
                gate = replace(node, gate=gate, min_sharpness=value / 2, max_sharpness=value * 2)
        except ConfigError as error:
            assert str(error).startswith("gate.") and str(error).endswith(".")
            continue
        for dtype in (torch.float32, torch.float64):
            d = torch.cat([grid(-1e4, 1e4, 801), grid(-300, 300, 801), grid(-45, 45, 801), grid(-1, 1, 81)]).to(dtype)
            for sign in (1.0, -1.0):
                assert value_of(gate, d, sign).isfinite().all(), (key, dtype)
                assert weights(gate, d, sign).isfinite().all(), (key, dtype)
        assert isinstance(gate.weight_at_one(), float) and math.isfinite(gate.weight_at_one())


def sigmoid_supremum(k: float) -> float:
    """(k/4)(r* - 1/(k^2 r*)) with k r* tanh(k (r*-1)/2) = 1, by bisection."""
    low, high = 1.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if k * middle * math.tanh(k * (middle - 1) / 2) > 1 else (middle, high)
    return k / 4 * (low - 1 / (k**2 * low))


K = 10.0
TABLE: list[tuple[str, Gate, float, Callable[[Tensor], Tensor], float, float]] = [
    # name, gate, sign of A, w(r), w(1), sup w: the table of the gates, each row written out
    ("reinforce", gates.Log(), 1, lambda r: r**0, 1, 1),
    ("importance_sampling", gates.Identity(), 1, lambda r: r, 1, math.inf),
    ("ppo_pos", load_gate("clip"), 1, lambda r: r * (r < 1.2), 1, 1.2),
    ("ppo_neg", load_gate("clip"), -1, lambda r: r * (r > 0.8), 1, math.inf),
    ("dual_clip_neg", load_gate("clip", cap=3.0), -1, lambda r: r * (r > 0.8) * (r < 3), 1, 3),
    ("cispo", gates.Cispo(cap=3.0), 1, lambda r: r.clamp(max=3), 1, 3),
    ("sapo_pos", load_gate("sapo"), 1, lambda r: r * sech2((r - 1) / 2), 1, 4 * sigmoid_supremum(1.0)),
    ("sapo_neg", load_gate("sapo"), -1, lambda r: r * sech2(1.05 * (r - 1) / 2), 1, 4 / 1.05 * sigmoid_supremum(1.05)),
    ("sigmoid", gates.Sigmoid(sharpness=K), 1, lambda r: K / 4 * r * sech2(K * (r - 1) / 2), K / 4, sigmoid_supremum(K)),
    ("sigmoid_log", gates.SigmoidLog(sharpness=K), 1, lambda r: K / 4 * sech2(K * r.log() / 2), K / 4, K / 4),
    (
        "sigmoid_matched",
        gates.SigmoidMatched(sharpness=K),
        1,
        lambda r: K / 4 * sech2(K * r.log() / 2 - math.atanh(1 / K)),
        (K**2 - 1) / (4 * K),
        K / 4,
    ),
    (
        "gaussian_log",
        gates.GaussianLog(sharpness=1 / 0.3),
        1,
        lambda r: torch.exp(-(r.log() ** 2) / (2 * 0.3**2)) / (0.3 * math.sqrt(2 * math.pi)),
        1 / (0.3 * math.sqrt(2 * math.pi)),
        1 / (0.3 * math.sqrt(2 * math.pi)),
    ),
    (
        "power",
        gates.Power(sharpness=2.0, center=1.5),
        1,
        lambda r: 2 * r / 1.5 * (1 + r / 1.5) ** -3,
        2 / 1.5 * (1 + 1 / 1.5) ** -3,
        (1 + 1 / 2) ** -3,
    ),
    (
        "rational",
        gates.Rational(sharpness=4.0, center=1.5),
        1,
        lambda r: 4 * r**4 / (1.5**4 + r**4) * (1 - r**4 / (1.5**4 + r**4)),
        4 * 1.5**4 / (1 + 1.5**4) ** 2,
        4 / 4,
    ),
    ("open", gates.Open(), 1, lambda r: 0 * r, 0, 0),
    ("erf", load_gate("erf"), 1, lambda r: 5 / math.pi**0.5 * r * torch.exp(-25 * (r - 1) ** 2), 5 / math.pi**0.5, -1),
    ("arctan", load_gate("arctan"), 1, lambda r: 5 / math.pi * r / (1 + 25 * (r - 1) ** 2), 5 / math.pi, -1),
    ("softsign", load_gate("softsign"), 1, lambda r: 2.5 * r / (1 + 5 * (r - 1).abs()) ** 2, 2.5, -1),
    ("tanh", load_gate("tanh"), 1, lambda r: 2.5 * r * sech2(5 * (r - 1)), 2.5, -1),
    ("spo_pos", load_gate("spo"), 1, lambda r: r * (1 - (r - 1) / 0.2), 1, -1),
    ("spo_neg", load_gate("spo"), -1, lambda r: r * (1 + (r - 1) / 0.2), 1, math.inf),
    (
        "sign_aware_pos",
        gates.SignAwareSigmoid(sharpness=K, cap=3.0),
        1,
        lambda r: torch.where(r > 1, r * sech2(K * (r - 1) / 2), r),
        1,
        4 / K * sigmoid_supremum(K),
    ),
    (
        "sign_aware_neg",
        gates.SignAwareSigmoid(sharpness=K, cap=3.0),
        -1,
        lambda r: torch.where(r < 1, r * sech2(K * (r - 1) / 2), r.clamp(max=3)),
        1,
        3,
    ),
]


@pytest.mark.parametrize(("gate", "sign", "w", "at_one", "supremum"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_the_table_of_weights(gate: Gate, sign: float, w: Callable[[Tensor], Tensor], at_one: float, supremum: float) -> None:
    d = grid(-9.0, 9.0, 18_001)
    d = d[(d[:, None] - torch.tensor(KINKS)).abs().amin(1) > 1e-9]
    found = weights(gate, d, sign)
    torch.testing.assert_close(found, w(d.exp()), rtol=1e-9, atol=1e-10)
    assert weights(gate, torch.zeros((), dtype=torch.float64), sign).item() == pytest.approx(at_one)
    if supremum == math.inf:
        assert found.max() > 1e3
        assert weights(gate, grid(-9.0, 20.0), sign).max() > 1e8
    elif supremum >= 0:  # -1: the theory states none
        assert found.max().item() == pytest.approx(supremum, rel=1e-3)


def test_the_numbers_the_theory_quotes() -> None:
    assert 4 * sigmoid_supremum(1.0) == pytest.approx(1.57, abs=0.005)  # SAPO's sup w at t = 1
    d = grid(-10, 10)
    assert gates.Sapo(sharpness=4.0, sharpness_neg=4.0)(d, d * 0).max() <= 1  # in [0, 1] at t >= 4 ...
    assert gates.Sapo(sharpness=3.9, sharpness_neg=4.0)(d, d * 0).max() > 1  # ... only


@dataclass(frozen=True, kw_only=True)
class Bell(Gate):
    """exp(-d^2/2 s^2), s = 1/2: no slope at r = 1, then it rewards leaving; the case that must fail."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (-2 * d.square()).exp()


def test_the_bell_learns_nothing_at_one_and_then_rewards_leaving() -> None:
    d = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(weights(Bell(), d), -4 * d * (-2 * d.square()).exp())
    with pytest.raises(ConfigError, match=r"gate\.scale=unit: Bell has no positive w\(1\)"):
        Bell(scale="unit")


@pytest.mark.parametrize("name", IN_UNIT_INTERVAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gates_that_are_probabilities_stay_in_the_unit_interval_and_rise(name: str, dtype: torch.dtype) -> None:
    gate, d = load_gate(name), grid(-300, 300, 6001).to(dtype)
    value = gate(d, torch.ones_like(d))
    assert value.min() >= 0
    assert value.max() <= 1
    assert (value.diff() >= -torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("name", ["log", "identity", "cispo", "sapo", "clip"])
def test_the_others_are_no_probabilities(name: str) -> None:
    d = grid(-20, 20)
    assert load_gate(name)(d, d * 0 - 1).max() > 1


def test_budget_keeps_steps_towards_the_reference_and_fades_the_others() -> None:
    budget, b, tau = gates.Budget(sharpness=1 / 0.15, budget=0.75), 0.75, 0.15
    d = grid(-3, 3, 61)
    for sign in (1.0, -1.0):
        written_out = torch.sigmoid((b - sign * d) / tau) / torch.sigmoid(torch.tensor(b / tau, dtype=torch.float64))
        torch.testing.assert_close(budget(d, d * 0 + sign), written_out)
    assert budget(torch.tensor(0.0), torch.tensor(1.0)).item() == pytest.approx(1.0)
    assert budget(torch.tensor(3.0), torch.tensor(1.0)) < 1e-6
    assert budget(torch.tensor(3.0), torch.tensor(-1.0)).item() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("gate", "relative"),
    [(gates.SigmoidMatched(sharpness=3.0), 1.0), (gates.Sigmoid(sharpness=10.0), 1.0), (gates.SigmoidLog(sharpness=10.0), 0.0)],
    ids=["matched", "sigmoid", "log"],
)
def test_the_weight_follows_the_ratio_to_first_order_or_not(gate: Gate, relative: float) -> None:
    h = 1e-6
    low, high = weights(gate, torch.tensor([-h, h], dtype=torch.float64)).tolist()
    assert (high - low) / (2 * h) == pytest.approx(relative * gate.weight_at_one(), abs=1e-6)


def test_rational_with_center_one_is_the_sigmoid_in_log_r() -> None:
    d = grid(-50, 50)
    torch.testing.assert_close(gates.Rational(sharpness=7.0, center=1.0)(d, d), gates.SigmoidLog(sharpness=7.0)(d, d))


def test_tanh_is_the_sigmoid_of_twice_the_sharpness() -> None:
    d = grid(-5, 2)
    torch.testing.assert_close(gates.Tanh(sharpness=5.0)(d, d), gates.Sigmoid(sharpness=10.0)(d, d))


@pytest.mark.parametrize(
    "naive",
    [lambda d: torch.sigmoid(10 * (torch.exp(d) - 1)), lambda d: torch.exp(d).clamp(max=1.2)],
    ids=["sigmoid", "clip"],
)
def test_the_naive_formula_fails_where_ours_does_not(naive: Callable[[Tensor], Tensor]) -> None:
    d = torch.tensor(89.0, requires_grad=True)
    (slope,) = torch.autograd.grad(naive(d), d)
    assert slope.isnan()
    for gate in (load_gate("sigmoid"), load_gate("clip")):
        assert weights(gate, torch.tensor(89.0)) == 0
