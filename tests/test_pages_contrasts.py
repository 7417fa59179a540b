"""Changes between arms on the pages, against means read from the runs' files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import ttest_ind

from experiments.pages.arms import across, arms, contrasts, differences, others
from experiments.pages.literature import evaluated, published
from experiments.pages.numbers import lengths
from experiments.pages.results import Results
from experiments.pages.sweeps import apart, grid, growth, losses, remedies

ROOT = Path(__file__).parents[1]


def mean_return(gate: str, target: str, penalty: bool) -> float:
    """Mean over the runs of `factorial` on Ant of the return over the last tenth of the iterations."""
    ends = []
    for folder in (ROOT / "results" / "factorial").glob("ant-*"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        if config["gate"]["_target_"] == target and ("kl_target" in (config["penalty"] or {})) is penalty:
            column = pq.read_table(folder / "metrics.parquet", columns=["return/train_mean"]).column(0).to_numpy()
            ends.append(column[-(len(column) // 10 + 1) :].mean())
    assert len(ends) == 5, gate
    return float(sum(ends) / 5)


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(ROOT / "results")


def cells(table: str, row: int) -> list[str]:
    return [cell.strip() for cell in table.strip().splitlines()[2 + row].strip("|").split("|")]


def interval(cell: str) -> list[float]:
    return [float(word) for word in cell.replace("[", "").replace("]", "").replace(",", "").split()]


def test_a_contrast_is_the_relative_change_of_the_means(results: Results) -> None:
    ours, theirs = mean_return("sigmoid", "rgpo.gates.Sigmoid", True), mean_return("clip", "rgpo.gates.Clip", False)
    table = contrasts(results, "factorial", "clip+none:clip+none", "sigmoid+adaptive:clip+none")
    assert cells(table, 0)[:4] == ["clip+none", "clip+none", "5", cells(table, 0)[3]] and cells(table, 0)[3].startswith("0 [-")
    value, low, high = interval(cells(table, 1)[3])
    assert value == pytest.approx(100 * (ours / theirs - 1), abs=1.5) and low < value < high
    assert "has not been run" in contrasts(results, "nothing", "a+b:c+d")
    value, low, high = interval(cells(differences(results, "factorial", "sigmoid+adaptive:clip+none"), 0)[3])
    assert value == pytest.approx(ours - theirs, rel=0.05) and low < value < high


def means(experiment: str, prefix: str, column: str, fits: Callable[[Any], bool], share: float = 1.0) -> list[float]:
    """The mean of a column over the last share of its rows, for each run of an experiment whose configuration fits."""
    found = []
    for folder in sorted((ROOT / "results" / experiment).glob(f"{prefix}-*")):
        if fits(yaml.safe_load((folder / "config.yaml").read_text())):
            values = pq.read_table(folder / "metrics.parquet", columns=[column]).column(0).to_numpy()
            found.append(float(values[-round(share * len(values)) :].mean()))
    return found


def test_shares_lengths_and_settings_are_means_over_the_runs(results: Results) -> None:
    alone = lambda c: c["choices"]["gate"] == "sigmoid" and c["choices"]["penalty"] == "none"  # noqa: E731
    table = across(results, "factorial", "grad/clip_fraction", "mean")
    (row,) = (one for one in map(str.strip, table.splitlines()) if one.startswith("| sigmoid+none"))
    head = [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")]
    share = float([cell.strip() for cell in row.strip("|").split("|")][head.index("hopper, %")])
    assert share == pytest.approx(100 * np.mean(means("factorial", "hopper", "grad/clip_fraction", alone)), rel=0.02)
    assert "+none" not in across(results, "factorial", "kl/coef", "share", "above", "0.001001")

    low = lambda c: c["choices"]["algo"] == "ppo" and c["penalty"]["coef"] == 0.2  # noqa: E731
    short = np.mean(means("language_frontier", "qwen_rlhf", "language/length_mean", low, results.settings.final_fraction))
    (row,) = (one for one in lengths(results, "language_frontier").splitlines() if one.startswith("| ppo |"))
    least, _, most = row.strip("| ").split(" | ")[2].partition(" to ")
    assert float(least) - 0.05 <= short <= float(most) + 0.05

    at = lambda c: c["choices"]["gate"] == "sigmoid" and c["penalty"]["kl_target"] == 0.05  # noqa: E731
    returns = means("matched_kl", "hopper", "return/train_mean", at, results.settings.final_fraction)
    table = grid(results, "matched_kl", "penalty.kl_target", "return/train_mean", "final")
    assert f"{np.mean(returns):,.0f} ± {np.std(returns, ddof=1):,.0f}" in table and len(returns) == 5

    same = contrasts(results, "factorial", "sigmoid+adaptive:clip+none")
    (row,) = (one for one in others(results, "factorial", "factorial", "clip+none").splitlines() if "=sigmoid penalty=ad" in one)
    assert row.split("|")[3:] == same.strip().splitlines()[2].split("|")[4:]


def test_losses_and_remedies_are_differences_of_the_runs_returns(results: Results) -> None:
    def returns(algo: str, staleness: int, cap: float | None) -> Any:
        def fits(config: Any) -> bool:
            task = config["task"]
            return config["choices"]["algo"] == algo and (task["staleness"], task["correction_cap"]) == (staleness, cap)

        return means("staleness", "hopper", "return/train_mean", fits, results.settings.final_fraction)

    literal, clip = ([returns(algo, delay, None) for delay in (0, 16)] for algo in ("rgpo_literal", "ppo"))
    table = losses(results, "staleness", "task.staleness", "0", "16", "sigmoid+none")
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    (row,) = (row for row in rows if row[:2] == ["hopper", "clip+none"])
    loss, beyond = (interval(cell) for cell in row[-2:])
    judge = ttest_ind(*clip, equal_var=False).confidence_interval(0.95)
    assert loss[1:] == pytest.approx(tuple(judge), rel=0.01)
    drops = [np.mean(arm[0]) - np.mean(arm[1]) for arm in (clip, literal)]
    assert beyond[0] == pytest.approx(drops[0] - drops[1], rel=0.01)
    (row,) = (row for row in rows if row[:2] == ["hopper", "sigmoid+none"])
    assert row[-1] == "–"

    table = remedies(results, "staleness", "task.staleness", "correction_cap=2")
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    (row,) = (row for row in rows if row[:2] == ["hopper", "sigmoid+none"])
    judge = ttest_ind(returns("rgpo_literal", 16, 2.0), literal[1], equal_var=False).confidence_interval(0.95)
    assert interval(row[-1])[1:] == pytest.approx(tuple(judge), rel=0.01)
    assert "has not been run" in remedies(results, "factorial", "update.lr", "correction_cap=2")


def test_growth_is_the_ratio_of_the_means(results: Results) -> None:
    def kl(num_epochs: int) -> list[float]:
        fits = lambda c: c["choices"]["algo"] == "ppo" and c["update"]["num_epochs"] == num_epochs  # noqa: E731
        return means("epochs", "halfcheetah", "kl/old_exact", fits)

    table = growth(results, "epochs", "update.num_epochs", "30", "80", "kl/old_exact", "mean")
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    (row,) = (row for row in rows if row[:2] == ["halfcheetah", "clip+none"])
    value, low, high = interval(row[3])
    assert value == pytest.approx(np.mean(kl(80)) / np.mean(kl(30)), rel=0.01) and row[2] == str(len(kl(80))) == "5"
    for end in (low, high):  # ratios that Welch's test just rejects
        assert ttest_ind(kl(80), np.multiply(kl(30), end), equal_var=False).pvalue == pytest.approx(0.05, abs=0.01)
    assert "has not been run" in growth(results, "factorial", "update.num_epochs", "30", "80", "kl/old_exact", "mean")


def test_settings_apart_are_those_whose_adjusted_p_is_small(results: Results) -> None:
    def returns(gate: str, k: float) -> Any:
        def fits(config: Any) -> bool:
            return (
                config["choices"]["gate"] == gate
                and config["choices"]["penalty"] == "adaptive"
                and config["gate"]["sharpness"] == k
            )

        return means("sensitivity", task, "return/train_mean", fits, results.settings.final_fraction)

    found = []
    for task in ("halfcheetah", "hopper"):
        for gate in ("sigmoid", "sigmoid_log"):
            for low, high in combinations((1, 2, 4, 5, 10, 20), 2):
                if 60 * ttest_ind(returns(gate, low), returns(gate, high), equal_var=False).pvalue < 0.05:
                    found.append([task, f"{gate}+adaptive", str(low), str(high)])
    first, table = apart(results, "sensitivity", "gate.sharpness", "adaptive").split("\n\n")
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    assert found and [row[:2] + row[3:5] for row in rows] == found and first == f"{len(found)} of 60 pairs:"


def test_arms_of_several_algorithms_are_named_by_them(results: Results) -> None:
    table = arms(results, "neighbors")
    assert "| algorithm |" in table.splitlines()[0] and "gate" not in table
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    returns = means("neighbors", "hopper", "return/train_mean", lambda c: c["choices"]["algo"] == "spo", 0.1)
    (row,) = (row for row in rows if row[:2] == ["hopper", "spo"])
    assert float(row[-2]) == pytest.approx(np.mean(returns), rel=1e-3) and row[2] == str(len(returns))


def test_published_rows_are_those_with_an_interval(results: Results) -> None:
    table = published(results, "factorial", "clip+none")
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    assert {row[0] for row in rows} == {"ant", "halfcheetah", "hopper", "walker2d"} and all("[" in row[7] for row in rows)
    assert "has not been run" in published(results, "nothing", "clip+none")


def test_evaluation_returns_stand_beside_those_of_other_projects(results: Results) -> None:
    table = evaluated(results, "baselines", "trpo")
    head = [cell.strip() for cell in table.strip().splitlines()[0].strip("|").split("|")]
    rows = [cells(table, row) for row in range(len(table.strip().splitlines()) - 2)]
    (hopper,) = (row for row in rows if row[0] == "hopper" and row[1].endswith("kl_max=0.03"))
    assert hopper[head.index("sb3-contrib")] == "3,372 ± 215 (3)" and hopper[head.index("Spinning Up (PyTorch)")] == "1,200 (10)"
    ends = []
    for folder in (ROOT / "results" / "baselines").glob("hopper-trpo-*"):
        if yaml.safe_load((folder / "config.yaml").read_text())["update"]["kl_max"] == 0.03:
            column = pq.read_table(folder / "metrics.parquet", columns=["return/eval_mean"]).column(0).to_numpy()
            measured = column[~pd.isna(column)]
            ends.append(measured[-round(len(measured) / 10) :].mean())
    assert hopper[2] == f"{np.mean(ends):,.0f} ± {np.std(ends, ddof=1):,.0f} ({len(ends)})"
    assert interval(hopper[-1])[0] == pytest.approx(np.mean(ends) - 3372, abs=1)
    assert "has not been run" in evaluated(results, "baselines", "spo")
