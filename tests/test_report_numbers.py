"""The report's numbers: statistics against closed forms, the summary by hand, what each figure computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures
from scipy.stats import trim_mean

from rgpo.report import stats
from rgpo.report.cli import parse
from rgpo.report.figures import epoch_drift, kl, learning_curves
from rgpo.report.groups import Group, group_runs
from rgpo.report.load import read_runs
from rgpo.report.style import KNOWN, algorithm_lines, assign
from rgpo.report.summary import final_train, summary
from rgpo.report.tables import Table, escape_tex, number, plain, word
from rgpo.schema import GLOSSARY

COLUMNS = ("return/train_mean", "return/eval_mean", "kl/old_exact", "kl/spike", "epoch/kl_old_exact")
SETTINGS, _ = parse(["num_resamples=200"])


def load(results: Path) -> list[Group]:
    """The groups of the fixtures' experiment."""
    return group_runs(read_runs(results / "first_evidence", COLUMNS)[0])[0]


# statistics


def test_iqm_is_the_trimmed_mean() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 4, 5, 8, 11, 100):
        values = rng.standard_cauchy(size)
        assert stats.iqm(values) == pytest.approx(trim_mean(values, 0.25), rel=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        stats.iqm(np.empty(0))


def test_coefficient_of_variation_and_spikes() -> None:
    assert stats.coefficient_of_variation(np.array([1.0, 3.0])) == pytest.approx(100 * np.sqrt(2) / 2)
    assert stats.coefficient_of_variation(np.array([-1.0, -3.0])) == pytest.approx(100 * np.sqrt(2) / 2)
    assert np.isnan(stats.coefficient_of_variation(np.array([2.0])))
    assert stats.spike_rate(np.array([0.0, 1.0, np.nan, 1.0])) == pytest.approx(2 / 3)
    assert np.isnan(stats.spike_rate(np.array([np.nan])))


def test_bootstrap_covers_a_normal_mean() -> None:
    rng = np.random.default_rng(1)
    options = {"num_resamples": 1000, "confidence": 0.95}
    hits, widths = 0, []
    for _ in range(400):
        low, high = stats.bootstrap_interval([rng.normal(5.0, 2.0, 50)], stats.mean_of_all, rng, **options)
        hits += low <= 5.0 <= high
        widths.append(high - low)
    assert hits / 400 == pytest.approx(0.95, abs=0.035)  # 3 standard errors
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2.0 / np.sqrt(50), rel=0.05)


def test_strata_are_resampled_apart() -> None:
    rng = np.random.default_rng(2)
    options = {"num_resamples": 500, "confidence": 0.95}
    constant = [np.full(3, 1.0), np.full(5, 9.0)]  # between-stratum spread must not enter
    assert stats.bootstrap_interval(constant, stats.mean_of_all, rng, **options) == (6.0, 6.0)
    assert stats.bootstrap_interval(constant, stats.difference_of_means, rng, **options) == (-8.0, -8.0)
    with pytest.raises(ValueError, match="strata"):
        stats.bootstrap_interval([np.empty(0)], stats.mean_of_all, rng, **options)


def test_mean_interval_agrees_with_the_bootstrap() -> None:
    values = np.random.default_rng(3).normal(size=(10, 2))
    options = {"num_resamples": 20_000, "confidence": 0.9}
    low, high = stats.mean_interval(values, stats.generator(0, "a"), **options)
    for i in range(2):
        both = stats.bootstrap_interval([values[:, i]], stats.mean_of_all, stats.generator(0, "b"), **options)
        assert (low[i], high[i]) == pytest.approx(both, abs=0.02)
    assert np.isnan(stats.mean_interval(values[:2], stats.generator(0), **options)).all()
    values[0, 1] = np.nan
    assert np.isnan(stats.mean_interval(values, stats.generator(0), **options)[0]).tolist() == [False, True]


def test_running_mean() -> None:
    values = np.array([[0.0, 3.0, 6.0, np.nan, 12.0]])
    assert stats.running_mean(values, 3)[0, :3].tolist() == [1.5, 3.0, 4.5]
    assert np.isnan(stats.running_mean(values, 3)[0, 3]) and stats.running_mean(values, 3)[0, 4] == 12.0
    assert stats.running_mean(values, 1) is values


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
            spikes = np.zeros(40)
            spikes[:10] = 1
            evaluated = np.full(40, np.nan)
            evaluated[[5, 39]] = [0.0, value + 5]
            changes = {"kl/old_exact": np.full(40, 0.5), "kl/spike": spikes, "return/eval_mean": evaluated}
            fixtures.write_run(tmp_path, algo=algo, seed=seed, iterations=40, metrics=metrics | changes | {
                "return/train_mean": train
            })  # fmt: skip
    groups = load(tmp_path)
    assert [final_train(run, 0.1) for run in groups[0].used] == list(finals["ppo"])
    ppo, rgpo = summary(groups, SETTINGS).rows
    assert (ppo["final_train"], ppo["final_train_iqm"], ppo["final_eval"], ppo["n"]) == (20.0, 20.0, 25.0, 3)
    assert (ppo["cv_percent"], ppo["kl_mean"], ppo["kl_median"], ppo["spike_rate"]) == (50.0, 0.5, 0.5, 0.25)
    assert 10 <= ppo["final_train_low"] < 20 < ppo["final_train_high"] <= 30
    assert (rgpo["baseline"], rgpo["difference"], rgpo["difference_percent"]) == ("ppo", 20.0, 100.0)
    assert 0 <= rgpo["difference_low"] < 20 < rgpo["difference_high"] <= 40


def test_too_few_seeds_are_said(tmp_path: Path) -> None:
    for seed in (1, 2):
        fixtures.write_run(tmp_path, seed=seed)
    text = summary(load(tmp_path), SETTINGS).markdown()
    assert text.count("n = 2 < 3") == 2  # interval and coefficient of variation


def test_table_forms() -> None:
    rows = ({"task": "a_b", "x": -1.25, "n": 3}, {"task": "50 %", "x": float("nan"), "n": 3})
    table = Table("t", "caption", (word("task", "task"), number("x", "x (%)")), rows, section="task")
    assert table.markdown().splitlines() == ["| task | x (%) |", "| :-- | --: |", "| a_b | -1.25 |", "| 50 % | – |"]
    tex = table.tex()
    assert r"a\_b & $-$1.25 \\" in tex and r"50 \% & -- \\" in tex and r"\begin{tabular}{lr}" in tex
    assert [rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [True] * 3
    assert table.csv() == "task,x,n\na_b,-1.25,3\n50 %,,3\n"
    assert [plain(x) for x in (2383.4, 41.26, 0.00973, 1.2e-5, 0.0, float("inf"))] == [
        "2383", "41.3", "0.00973", "1.20e-05", "0", "inf",
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
