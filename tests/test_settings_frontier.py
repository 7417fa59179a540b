"""Results against KL over settings: arms on one known curve, one above it, and what a path over the KL per update begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main, parse
from rgpo.report.figures import settings_frontier
from rgpo.report.read.arms import arms_of
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import read_runs
from rgpo.report.read.workers import workers
from rgpo.report.settings import Settings
from rgpo.report.tables.matched import matched_table

TARGETS = (0.003, 0.01, 0.03, 0.1)


def write(results: Path, gate: str, factor: float, spread: float = 0.02) -> None:
    """Three seeds at four targets: the return is factor * 1000 * (1 + log10 of the KL over 0.001), and the KL the target's."""
    for seed in (1, 2, 3):
        for target in TARGETS:
            kl = target * (1 + spread * (seed - 2))
            metrics = fixtures.metrics_of("hopper", "ppo", seed, 20)
            metrics |= {
                "kl/old_exact": np.full(20, kl),
                "return/train_mean": np.full(20, factor * 1000 * (1 + np.log10(kl / 1e-3))),
            }
            fixtures.write_run(
                results,
                "hopper",
                "ppo",
                seed,
                20,
                metrics=metrics,
                choices={"gate": gate},
                penalty={"_target_": "rgpo.core.penalties.Adaptive", "kl_target": target},
            )


def groups_of(results: Path) -> list[Group]:
    with workers(0) as serial:
        runs, problems = read_runs(results / "first_evidence", {"kl/old_exact", "return/train_mean"}, 0.1, (0.04,), serial)
    assert not problems
    return group_runs(runs)[0]


def settings(*words: str) -> Settings:
    return parse(list(words))[0]


def test_arms_on_one_curve_do_not_differ_and_one_above_it_does(tmp_path: Path) -> None:
    write(tmp_path, "identity", 1.0)
    write(tmp_path, "sigmoid", 1.0, spread=0.03)
    write(tmp_path, "spo", 1.5)
    groups = groups_of(tmp_path)
    arms = {arm.label: arm for arm in arms_of(groups)}
    assert set(arms) == {"ppo gate=identity", "ppo gate=sigmoid", "ppo gate=spo"}
    assert all(len(arm.groups) == 4 and sorted(arm.by_seed) == [1, 2, 3] for arm in arms.values())
    table = matched_table(groups, settings("baseline=ppo gate=identity"))
    assert table is not None and {row["measure"] for row in table.rows} == {"return, over settings"}
    for row in table.rows:
        assert 0.003 < row["kl"] < 0.1 and row["baseline"] == "ppo gate=identity"
        assert (row["percent_low"] > 0) == (row["label"] == "ppo gate=spo")
        if row["label"] == "ppo gate=spo":
            assert row["percent"] == pytest.approx(50, abs=1)


def test_the_curve_is_the_mean_over_seeds_at_each_setting(tmp_path: Path) -> None:
    write(tmp_path, "identity", 1.0)
    (panel,) = settings_frontier.compute(groups_of(tmp_path), settings())
    (curve,) = panel.series
    assert curve.x == pytest.approx(np.array(TARGETS)) and curve.num_seeds == 3
    assert curve.mean == pytest.approx(1000 * (1 + np.log10(np.array(TARGETS) / 1e-3)), abs=1)
    assert (curve.low < curve.mean).all() and (curve.mean < curve.high).all()


def test_a_sweep_of_one_setting_has_no_such_figure_and_no_row(tmp_path: Path) -> None:
    for algo in ("ppo", "rgpo"):
        for seed in (1, 2, 3):
            fixtures.write_run(tmp_path, "hopper", algo, seed, 20)
    groups = groups_of(tmp_path)
    assert settings_frontier.compute(groups, settings()) == () and matched_table(groups, settings()) is None


def test_the_page_and_a_drawing_have_it(here: Path) -> None:
    write(here / "results", "identity", 1.0)
    write(here / "results", "spo", 1.5)
    assert main(["figures=[settings_frontier]", "format=svg", "num_resamples=100"]) == 0
    assert (here / "report/first_evidence/figures/settings_frontier.svg").stat().st_size > 5000
    page = (here / "report/index.html").read_text()
    assert "Results against KL over settings" in page and "At equal KL" in page


def test_annealed_learning_rates_are_named(here: Path) -> None:
    for algo, update in (("ppo", {"anneal_lr": True}), ("rgpo", {"anneal_lr": False}), ("trpo", {})):
        for seed in (1, 2):
            fixtures.write_run(here / "results", "hopper", algo, seed, update=update)
    assert main(["figures=[]", "num_resamples=100"]) == 0
    assert "annealed to 0 over the run (anneal_lr) in ppo; " in (here / "report/index.html").read_text()
