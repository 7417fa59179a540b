"""Gains of single updates: read off at equal KL, compared with PPO's clip state by state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.pages import one_update
from rgpo.report.figures import style

MORE = {"clip": 0.0, "sigmoid": 0.0, "no gate": 3.0}  # beyond the gain that all arms share


def write(folder: Path, states: int = 5) -> None:
    """Gains of 10 times log KL plus an offset of the state that all arms share; the arms have different KL."""
    rng = np.random.default_rng(0)
    for state in range(states):
        offset = 100 * rng.standard_normal()
        rows = []
        for number, (arm, more) in enumerate(MORE.items()):
            for batch in range(2):
                for epochs, kl in enumerate(np.geomspace(5e-4, 2.0, 7 + number), start=1):
                    gain = offset + 10 * np.log(kl) + more + 0.1 * (2 * batch - 1) * (number + 1)
                    rows.append({"batch": batch, "arm": arm, "lr": 1e-3, "epochs": epochs, "kl": kl, "return_before": 50.0})
                    rows[-1]["return_after"] = 50.0 + gain
        pd.DataFrame(rows).assign(task="hopper", state=state).to_parquet(folder / f"hopper-{state:04d}.parquet")


def test_arms_on_one_curve_differ_by_nothing_and_a_better_one_by_what_it_gains(tmp_path: Path) -> None:
    write(tmp_path)
    gains = one_update.gains(one_update.read(tmp_path))
    assert gains["hopper"]["clip"].shape == (5, len(one_update.LEVELS)) and np.isfinite(gains["hopper"]["clip"]).all()
    found = {(change.arm, change.kl): change for change in one_update.changes(gains, 0.95)}
    for level in one_update.TABLE_LEVELS:
        kl = float(one_update.LEVELS[level])
        for arm, more in MORE.items():
            change = found[arm, kl]
            assert change.num_states == 5 and change.difference.value == pytest.approx(more, abs=1e-9)
            assert change.difference.low == pytest.approx(more, abs=1e-6)  # the state's offset cancels
            assert change.gain.high - change.gain.low > 50  # and does not in the gain itself


def test_levels_beyond_an_arms_reach_and_too_few_states_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, states=2)
    gains = one_update.gains(one_update.read(tmp_path))
    assert one_update.changes(gains, 0.95) == []
    short = {"hopper": gains["hopper"] | {"sigmoid": np.full((2, len(one_update.LEVELS)), np.nan)}}
    assert {
        change.arm for change in one_update.changes({"hopper": {k: np.tile(v, (2, 1)) for k, v in short["hopper"].items()}}, 0.95)
    } == {
        "clip",
        "no gate",
    }
    assert one_update.read(tmp_path / "nowhere").empty


def test_gains_by_range_are_means_over_states_of_all_arms(tmp_path: Path) -> None:
    for state, gain in enumerate((1.0, 2.0, 6.0)):
        kl = [0.02, 0.05, 0.5, 0.5]
        rows = pd.DataFrame({"arm": ["clip", "spo"] * 2, "lr": 1e-3, "epochs": 1, "batch": 0, "kl": kl, "return_before": 7.0})
        rows["return_after"] = 7.0 + np.array([gain - 1, gain + 1, -gain, -gain])
        rows.assign(task="hopper", state=state).to_parquet(tmp_path / f"hopper-{state}.parquet")
    found = one_update.by_range(one_update.read(tmp_path), 0.95)
    small, large = found[0.01, 0.1]["hopper"], found[0.1, 1.0]["hopper"]
    half = 4.302653 * np.sqrt(7.0 / 3)  # t(0.975, 2) sd / sqrt(3)
    assert small == pytest.approx((3.0, 3.0 - half, 3.0 + half)) and large.value == pytest.approx(-3.0)
    assert found[0.0, 0.01] == {} == found[1.0, float("inf")]


def test_the_figure_has_a_panel_per_task_and_a_line_per_arm(tmp_path: Path) -> None:
    write(tmp_path)
    with style.context():
        figure = one_update.figure(one_update.gains(one_update.read(tmp_path)), 0.95)
    (axes,) = figure.axes
    assert axes.get_title() == "hopper" and axes.get_xscale() == "log"
    assert sum(len(line.get_xdata()) == len(one_update.LEVELS) for line in axes.get_lines()) == len(MORE)
