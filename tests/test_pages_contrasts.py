"""Changes between arms on the pages, against means read from the runs' files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from experiments.pages.literature import evaluated, published
from experiments.pages.numbers import contrasts, differences
from experiments.pages.results import Results

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
    assert hopper[head.index("sb3-contrib")] == "3,372 ± 215" and hopper[head.index("Spinning Up (PyTorch)")] == "1,200"
    ends = []
    for folder in (ROOT / "results" / "baselines").glob("hopper-trpo-*"):
        if yaml.safe_load((folder / "config.yaml").read_text())["update"]["kl_max"] == 0.03:
            column = pq.read_table(folder / "metrics.parquet", columns=["return/eval_mean"]).column(0).to_numpy()
            measured = column[~pd.isna(column)]
            ends.append(measured[-round(len(measured) / 10) :].mean())
    assert hopper[2:4] == [str(len(ends)), f"{np.mean(ends):,.0f} ± {np.std(ends, ddof=1):,.0f}"]
    assert "has not been run" in evaluated(results, "baselines", "spo")
