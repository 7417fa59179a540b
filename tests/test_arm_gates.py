"""The gates of a report's arms, as its runs recorded them: a user's own too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures
import torch
from torch import Tensor

import rgpo
from rgpo.core.gates import Sigmoid
from rgpo.report.cli import main
from rgpo.runtime.gate_curve import FEW_POINTS, drawn
from rgpo.runtime.provenance import GateCurve


@dataclass(frozen=True, kw_only=True)
class Odd(rgpo.Gate):
    """A gate of the user's that cannot be evaluated on these inputs, or uses torch's random numbers."""

    fails: bool

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        if self.fails:
            raise ValueError("never")
        return torch.sigmoid(d) + 0 * torch.rand(())


def test_value_and_weight_of_the_sigmoid() -> None:
    """g = sigma(k (r - 1)) and w = k r g (1 - g)."""
    found = drawn(Sigmoid(sharpness=4.0, scale="none"))
    assert found is not None and len(found["log_ratio"]) == FEW_POINTS
    r = np.exp(np.array(found["log_ratio"]))
    g = 1 / (1 + np.exp(-4 * (r - 1)))
    for value, weight in zip(found["gate_value"], found["weight"], strict=True):
        assert np.array(value, float) == pytest.approx(g, rel=1e-3, abs=1e-12)
        assert np.array(weight, float) == pytest.approx(4 * r * g * (1 - g), rel=1e-3, abs=1e-6)


def test_a_gate_that_fails_or_draws_does_not_disturb_the_run() -> None:
    state = torch.get_rng_state()
    assert drawn(Odd(fails=True, scale="none")) is None and drawn(object()) is None
    assert drawn(Odd(fails=False, scale="none")) is not None
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_records_its_gate_and_the_page_draws_it(here: Path) -> None:
    words = (
        "task=cartpole",
        "task.num_envs=2",
        "task.num_steps=32",
        "num_iterations=2",
        "eval_every=0",
        "update.num_minibatches=4",
    )
    for gate in ("gate.sharpness=3", "gate.sharpness=5"):
        rgpo.run("algo=rgpo", gate, "update.num_minibatches=4", *words, "results_dir=results")
    assert main(["figures=[arm_gates]", "format=svg", "num_resamples=100"]) == 0
    page = (here / "report/index.html").read_text() + json.dumps(fixtures.page_data(here / "report/index.html"))
    assert all(text in page for text in ("Gates of the arms", "Sigmoid(sharpness=3)", "Sigmoid(sharpness=5)"))
    assert (here / "report/default/figures/arm_gates.svg").exists()


WHOLE: GateCurve = {"log_ratio": [0.0, 1.0], "gate_value": [[0.5, 1.0], [0.5, None]], "weight": [[1.0, 0.0], [1.0, 0.0]]}


@pytest.mark.parametrize(
    ("curve", "shown"),
    [
        (WHOLE, True),
        (None, False),
        (WHOLE | {"weight": [[1.0], [1.0, 0.0]]}, False),
        (WHOLE | {"gate_value": [[0.5, 1.0]]}, False),
        ({"log_ratio": [0.0]}, False),
    ],
)
def test_a_damaged_curve_is_left_out(here: Path, curve: object, shown: bool) -> None:
    folder = fixtures.write_run(here / "results")
    path = folder / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate_curve": curve, "algorithm": {"gate": "Mine(width=1)"}}))
    assert main(["num_resamples=100"]) == 0
    assert ("Mine(width=1)" in json.dumps(fixtures.page_data(here / "report/index.html"))) == shown
