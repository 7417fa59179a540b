"""The report's numbers: statistics against closed forms, the summary by hand, and the panels of figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.report.cli import parse
from rgpo.report.figures import epoch_drift, kl, learning_curves
from rgpo.report.figures.style import KNOWN, algorithm_lines, assign
from rgpo.report.read.columns import TRAIN
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import read_runs
from rgpo.report.stats.bootstrap import Interval
from rgpo.report.tables.baseline import comparisons, scores
from rgpo.report.tables.overall import overall
from rgpo.report.tables.summary import returns, spikes
from rgpo.report.tables.table import Table, escape_tex, number, percent, plain, word
from rgpo.runtime.schema import GLOSSARY

COLUMNS = ("return/train_mean", "return/eval_mean", "kl/old_exact", "epoch/kl_old_exact")
SETTINGS, _ = parse(["num_resamples=200"])


def load(results: Path) -> list[Group]:
    """The groups of the fixtures' experiment."""
    options = (COLUMNS, SETTINGS.final_fraction, SETTINGS.thresholds)
    return group_runs(read_runs(results / "first_evidence", *options, lambda function, items, _: map(function, items))[0])[0]


# tables


def test_summary_by_hand(tmp_path: Path) -> None:
    finals = {"ppo": (10.0, 20.0, 30.0), "rgpo": (30.0, 40.0, 50.0)}
    for algo, values in finals.items():
        for seed, value in enumerate(values, start=1):
            train = np.full(40, -1e3)
            train[-8:] = [
                np.nan,
                value,
                np.nan,
                value,
                value,
                np.nan,
                value - 1,
                value + 1,
            ]  # 37 measured, last 4 count
            metrics = fixtures.metrics_of("hopper", algo, seed, 40)
            evaluated = np.full(40, np.nan)
            evaluated[[5, 39]] = [0.0, value + 5]
            changes = {"kl/old_exact": np.full(40, 0.5), "return/eval_mean": evaluated}
            fixtures.write_run(tmp_path, algo=algo, seed=seed, iterations=40, metrics=metrics | changes | {
                "return/train_mean": train
            })  # fmt: skip
    groups = load(tmp_path)
    assert list(groups[0].by_seed(TRAIN, "final").items()) == list(zip((1, 2, 3), finals["ppo"], strict=True))
    ppo, _ = returns(groups, SETTINGS).rows
    assert (ppo["return"], ppo["iqm"], ppo["eval"], ppo["n"]) == (20.0, 20.0, 25.0, 3)
    assert (ppo["cv"], ppo["kl"], ppo["kl_median"], ppo["spikes"]) == (50.0, 0.5, 0.5, 100.0)
    assert 10 <= ppo["return_low"] < 20 < ppo["return_high"] <= 30
    (rgpo,) = comparisons(groups, SETTINGS).rows  # Welch: 20 -+ t(4) 10 sqrt(2/3)
    assert (rgpo["baseline"], rgpo["difference"], rgpo["percent"], rgpo["n"]) == ("ppo", 20.0, 100.0, 3)
    assert (rgpo["difference_low"], rgpo["difference_high"]) == pytest.approx((20 - 22.670, 20 + 22.670), abs=1e-3)
    assert rgpo["p_holm"] == pytest.approx(0.0705, abs=1e-3)
    assert rgpo["noise"] == pytest.approx(100 * 4.3027 * math.sqrt(2 / 3) / 2, rel=1e-3)


def test_spikes_are_swept_over_thresholds(tmp_path: Path) -> None:
    for seed, level in ((1, 0.025), (2, 0.05), (3, 0.2)):
        metrics = fixtures.metrics_of("hopper", "ppo", seed, 10) | {"kl/old_exact": np.full(10, level)}
        fixtures.write_run(tmp_path, seed=seed, iterations=10, metrics=metrics)
    (row,) = spikes(load(tmp_path), SETTINGS).rows
    found = [row[f"above_{level}"] for level in ("0.02", "0.03", "0.04", "0.1", "0.3")]
    assert found == pytest.approx([100, 200 / 3, 200 / 3, 100 / 3, 0]) and (row["n"], row["updates"]) == (3, 30)


def test_too_few_seeds_are_marked(tmp_path: Path) -> None:
    for seed in (1, 2):
        fixtures.write_run(tmp_path, seed=seed)
        fixtures.write_run(tmp_path, algo="rgpo", seed=seed)
    groups = load(tmp_path)
    text = returns(groups, SETTINGS).markdown()
    assert text.count("(n = 2 < 3)") == 2 * 6  # return, IQM, evaluation, CV, KL, spikes
    assert comparisons(groups, SETTINGS).markdown().count("(n = 2 < 3)") == 2
    assert overall(groups, SETTINGS).markdown().count("(n = 2 < 3)") == 2 * 3 + 1


def test_scores_are_0_untrained_and_1_at_the_baseline(tmp_path: Path) -> None:
    for algo, end in (("ppo", 100.0), ("rgpo", 190.0)):
        for seed in (1, 2, 3):
            train = np.linspace(10.0 + seed - 2, end, 20)
            train[-2:] = end
            metrics = fixtures.metrics_of("hopper", algo, seed, 20) | {"return/train_mean": train}
            fixtures.write_run(tmp_path, algo=algo, seed=seed, iterations=20, metrics=metrics)
    found = scores(load(tmp_path), SETTINGS)
    assert found["ppo"]["hopper"].tolist() == [1.0] * 3 and found["rgpo"]["hopper"].tolist() == [2.0] * 3


def test_table_forms() -> None:
    rows = ({"task": "a_b", "x": -1.25, "n": 3}, {"task": "50 %", "x": float("nan"), "n": 3})
    table = Table("t", "title", "caption", (word("task", "task"), number("x", "x (%)")), rows, section="task")
    assert table.markdown().splitlines() == ["| task | x (%) |", "| :-- | --: |", "| a_b | -1.25 |", "| 50 % | – |"]
    tex = table.tex()
    assert r"a\_b & $-$1.25 \\" in tex and r"50 \% & -- \\" in tex and r"\begin{tabular}{lr}" in tex
    assert [rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [True] * 3
    assert table.csv() == "task,x,n\na_b,-1.25,3\n50 %,,3\n"
    assert [plain(x) for x in (2383.4, 41.26, 0.00973, 1.2e-5, 0.0, float("inf"))] == [
        "2383", "41.3", "0.00973", "1.20e-05", "0", "∞",
    ]  # fmt: skip
    assert escape_tex("a-b -3 x^2 {y}") == r"a-b $-$3 x\textasciicircum{}2 \{y\}"


# figures


def test_learning_curves_take_evaluation_where_every_group_has_it(tmp_path: Path) -> None:
    fixtures.write_experiment(tmp_path, algos=("ppo",), seeds=3, iterations=60)
    without = fixtures.metrics_of("hopper", "rgpo", 1, 60)
    without["return/eval_mean"][:59] = np.nan  # one evaluation at the end makes no curve
    fixtures.write_run(tmp_path, "hopper", "rgpo", iterations=60, metrics=without)
    halfcheetah, hopper = learning_curves.compute(load(tmp_path), SETTINGS)
    assert (halfcheetah.y_label, hopper.y_label) == ("evaluation return", "training return")
    assert halfcheetah.series[0].x.tolist() == [20 * 2048, 40 * 2048, 60 * 2048]
    assert [curve.num_seeds for curve in hopper.series] == [3, 1]
    assert np.isnan(hopper.series[1].low).all() and np.isfinite(hopper.series[0].low).all()


def test_the_mean_stops_where_a_seed_stops(tmp_path: Path) -> None:
    for seed, reached in ((1, 10), (2, 20)):
        fixtures.write_run(tmp_path, seed=seed, reached=reached, status="running")
    (panel,) = kl.compute(load(tmp_path), SETTINGS)
    assert np.isfinite(panel.series[0].mean).sum() == 10 and panel.levels == (0.04,)


def test_epoch_drift_is_the_mean_over_iterations(tmp_path: Path) -> None:
    metrics = fixtures.metrics_of("hopper", "ppo", 1, 3) | {"epoch/kl_old_exact": [[1.0, 2.0], [3.0], []]}
    fixtures.write_run(tmp_path, iterations=3, metrics=metrics)
    (panel,) = epoch_drift.compute(load(tmp_path), SETTINGS)
    assert panel.series[0].x.tolist() == [1.0, 2.0] and panel.series[0].mean.tolist() == [2.0, 2.0]


def test_one_look_per_algorithm() -> None:
    base = algorithm_lines(["ppo", "rgpo", "mine", "yours"])
    assert base["ppo"] == KNOWN["ppo"] and base["mine"] != base["yours"]
    labels = [("ppo", "ppo"), ("rgpo", "rgpo k=5"), ("rgpo", "rgpo k=10")]
    lines = assign(labels, base)
    assert lines["ppo"] == KNOWN["ppo"] and lines["rgpo k=5"] != lines["rgpo k=10"]
    sweep = assign([("rgpo", f"rgpo k={k}") for k in range(12)], base)
    assert len(set(sweep.values())) == 12
    assert len({(line.color, line.dashes, line.marker) for line in KNOWN.values()}) == len(KNOWN)


def test_the_fixtures_name_metrics_of_the_glossary() -> None:
    assert set(fixtures.metrics_of("hopper", "ppo", 1, 3)) <= set(GLOSSARY)


def test_changes_of_more_than_ten_times_are_factors() -> None:
    assert percent(Interval(12.3, -3.0, 27.0)) == "+12 % [-3.0, +27]" and percent(Interval(999.0, 900, 1200)).startswith("+999 %")
    assert percent(Interval(108629.0, 26938.0, 190366.0)) == "1087 times [270, 1905]"
    assert percent(Interval(5000.0, float("nan"), float("nan"))) == "51 times"
