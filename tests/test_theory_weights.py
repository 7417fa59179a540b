"""The theory's tables of weights and of the gate's bias against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.theory import bias, common, weights


def test_the_table_of_weights() -> None:
    """sup w = (k/4)(r* - 1/(k^2 r*)) at k r* tanh(k (r*-1)/2) = 1; the integral is g(inf) - g(-inf)."""
    facts = {name: weights._facts(name, common.load_gate(name), 1.0) for name in ("sigmoid", "clip", "identity", "log", "cispo")}
    k = 10.0
    r = np.linspace(1, 1.2, 2_000_001)
    peak = r[np.abs(k * r * np.tanh(k * (r - 1) / 2) - 1).argmin()]
    assert facts["sigmoid"]["sup"] == pytest.approx(k / 4 * (peak - 1 / (k**2 * peak)), rel=1e-6)
    assert facts["sigmoid"]["at_one"] == k / 4
    assert facts["sigmoid"]["integral"] == pytest.approx(1 - 1 / (1 + math.exp(k)), abs=1e-9)
    assert facts["sigmoid"]["in_unit_interval"]
    assert facts["clip"]["integral"] == pytest.approx(1.2)
    assert facts["clip"]["representable"] and not facts["clip"]["in_unit_interval"]
    assert facts["identity"]["sup"] == facts["identity"]["integral"] == facts["log"]["integral"] == math.inf
    assert (facts["log"]["sup"], facts["cispo"]["sup"]) == (1.0, pytest.approx(3.0))
    assert not facts["cispo"]["representable"]
    assert all(f["integral_error"] < 1e-6 for f in facts.values())


def test_spo_is_no_gate_because_its_weight_changes_sign() -> None:
    facts = weights._facts("spo", common.load_gate("spo"), 1.0)
    assert not facts["monotone"] and not facts["representable"]


def test_published_gradients_are_their_weights_and_no_others() -> None:
    assert weights._gradient_error("ppo", common.load_gate("clip")) < 1e-6
    assert weights._gradient_error("reinforce", common.load_gate("log")) < 1e-6
    assert weights._gradient_error("ppo", common.load_gate("identity")) > 0.05  # the case that must fail


# bias


def test_constants_of_the_bias() -> None:
    found = [bias.constant(k, bias.hellinger) for k in bias.SHARPNESS]
    assert found == pytest.approx([6.81, 19.2, 28.2, 103.0], rel=5e-3)
    for k in (5.0, 10.0):  # near r = 1 the ratio tends to k^2/2
        assert k**2 / 2 < bias.constant(k, bias.divergence) < bias.constant(k, bias.hellinger)


def test_bias_has_its_closed_form_slopes_and_floor() -> None:
    tables = bias.measure(smoke=True)
    exact = tables["bias"][tables["bias"].gate == "normalized sigmoid in r"]
    assert exact.from_closed_form.max() < 1e-12
    assert tables["bias"][tables["bias"].gate == "matched sigmoid in log r"].from_closed_form.max() > 1e-3  # not its formula
    assert bias.tightest(tables)[0] <= 1
    assert bias.slope(tables["bias"], "normalized sigmoid in r", 10.0)[0] == pytest.approx(1, abs=0.02)
    assert bias.slope(tables["bias"], "normalized sigmoid in log r", 10.0)[0] == pytest.approx(0.5, abs=0.05)
    for k in bias.SHARPNESS:
        assert bias.floor(tables["bias"], "raw sigmoid in r", k)[0] == pytest.approx(abs(k / 4 - 1), abs=1e-4)
