"""Speed against other implementations, from synthetic benchmark files: medians, paired ratios, phases, and missing files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main
from rgpo.report.tables import bench

FAST = ["format=svg", "num_resamples=200"]
PPO, TRPO = "PPO, HalfCheetah-v4, 1 environment", "TRPO, HalfCheetah-v4, 1 environment"
GRPO = "GRPO, SmolLM2-135M, LoRA, 32 tokens"
SPEEDS = {  # contestant -> steps per CPU-second in rounds 0, 1, 2
    "ours": (6000.0, 4000.0, 5000.0),
    "sb3": (2000.0, 2000.0, 1000.0),
    "ours-trpo": (900.0, 800.0, 700.0),
    "sb3-trpo": (1000.0, 1000.0, 1000.0),
    "ours-sigmoid": (3000.0, 4000.0, 10000.0),
}


@pytest.fixture
def here(here: Path) -> Path:
    """A current directory with one short run."""
    fixtures.write_run(here / "results", iterations=3)
    return here


def write(results: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    path = results / "bench" / f"{kind}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_control(results: Path) -> None:
    """Rounds run forwards and backwards, as the benchmark does."""
    rows = []
    for i in range(3):
        for name in list(SPEEDS)[:: 1 if i % 2 == 0 else -1]:
            row: dict[str, Any] = {"round": i, "env_id": "HalfCheetah-v4", "num_envs": 1, "contestant": name}
            row |= {"steps_per_cpu_s": SPEEDS[name][i], "peak_rss_mib": 300.0 + i}
            phases = (2.0, 1.0, 0.5, 0.5) if name.startswith("ours") else (None,) * 4
            rows.append(row | dict(zip(("collect_s", "update_s", "diagnostics_s", "gradvar_s"), phases, strict=True)))
    write(results, "control", rows)


def write_language(results: Path) -> None:
    seconds = {"generate": 2.0, "score": 1.0, "logprobs": 1.0, "update": 3.0, "diagnostics": 1.0}
    rows = []
    for i, (ours, trl) in enumerate(((50.0, 25.0), (60.0, 20.0), (40.0, 25.0))):
        for name, speed in (("ours", ours), ("trl", trl)):
            row: dict[str, Any] = {"case": "smollm2", "round": i, "contestant": name, "tokens_per_cpu_s": speed}
            row |= {f"time/{phase}_s": value if name == "ours" else None for phase, value in seconds.items()}
            rows.append(row | {"peak_rss_mib": 2000.0 if name == "ours" else 6000.0})
    write(results, "language", rows)


def made(here: Path) -> dict[tuple[str, str], dict[str, str]]:
    """(case, contestant) -> row of the csv."""
    return {(row["case"], row["contestant"]): row for row in fixtures.read_csv(here / "report/tables/speed.csv")}


def numbers(row: dict[str, str], *keys: str) -> list[float]:
    return [float(row[key]) for key in keys]


def test_medians_paired_ratios_and_phases(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_control(here / "results")
    write_language(here / "results")
    assert main([*FAST, "figures=[speed]"]) == 0 and capsys.readouterr().err == ""
    rows = made(here)
    names = {PPO: ("ours", "sb3", "ours, sigmoid"), TRPO: ("ours", "sb3"), GRPO: ("ours", "trl")}
    assert list(rows) == [(case, name) for case, many in names.items() for name in many]
    assert numbers(rows[PPO, "ours"], "speed", "speed_low", "speed_high", "n", "peak") == [5000, 4000, 6000, 3, 301]
    assert rows[PPO, "ours"]["ratio"] == "" and rows[TRPO, "ours"]["ratio"] == ""
    assert numbers(rows[PPO, "sb3"], "ratio", "ratio_low", "ratio_high") == [3, 2, 5]  # not 5000 / 2000
    assert numbers(rows[PPO, "ours, sigmoid"], "ratio", "ratio_low", "ratio_high") == [1, 0.5, 2]
    assert numbers(rows[TRPO, "sb3"], "ratio", "ratio_low", "ratio_high") == pytest.approx([0.8, 0.7, 0.9])
    assert numbers(rows[GRPO, "trl"], "ratio", "ratio_low", "ratio_high", "peak") == [2, 1.6, 3, 6000]
    assert numbers(rows[PPO, "ours"], *bench.PHASES) == [50, 25, 12.5, 12.5] and rows[PPO, "sb3"]["collect"] == ""
    assert numbers(rows[GRPO, "ours"], "collect", "update", "diagnostics") == [50, 37.5, 12.5]
    figure, page = (here / "report/figures/speed.svg").read_text(), (here / "report/index.html").read_text()
    assert all(text in figure for text in (PPO, TRPO, GRPO, "tokens per CPU-second", "environment steps per CPU-second"))
    assert "sigmoid" not in figure and "ours, sigmoid" in page and "Speed against other implementations" in page
    for kind in ("md", "tex"):
        assert "3.00 [2.00, 5.00]" in (here / f"report/tables/speed.{kind}").read_text()


def test_a_contestant_that_missed_a_round_is_paired_in_the_others() -> None:
    case = bench.Case("c", "tokens", {"ours": bench.Measured({0: 4.0, 1: 6.0}), "trl": bench.Measured({1: 2.0, 2: 1.0})})
    assert bench.ratio(case, "trl") == (3.0, 3.0, 3.0)
    alone = bench.Case("c", "tokens", {"trl": bench.Measured({1: 2.0})})
    assert np.isnan(bench.ratio(alone, "trl")).all()


@pytest.mark.parametrize("writer", [write_control, write_language])
def test_one_file_alone_is_enough(here: Path, capsys: pytest.CaptureFixture[str], writer: Any) -> None:
    writer(here / "results")
    assert main([*FAST, "figures=[speed]"]) == 0 and capsys.readouterr().err == ""
    assert (here / "report/figures/speed.svg").exists() and len({case for case, _ in made(here)}) < 3


def test_without_benchmarks_there_is_neither_table_nor_figure(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FAST) == 0 and capsys.readouterr().err == ""
    assert not list((here / "report").rglob("speed*"))
    assert main([*FAST, "figures=[speed]"]) == 1  # asked for by name
    assert "`python benchmarks/control.py 5 results/bench/control.parquet`" in capsys.readouterr().err


def test_figures_are_those_asked_for_and_the_table_is_always_there(here: Path) -> None:
    write_language(here / "results")
    assert main([*FAST, "figures=[]"]) == 0
    assert (here / "report/tables/speed.md").exists() and not list((here / "report").rglob("speed.svg"))


@pytest.mark.parametrize(("damage", "why"), [(b"PAR1", "cannot be read"), (None, "has no column")])
def test_a_damaged_file_is_named_and_the_other_is_used(
    here: Path, capsys: pytest.CaptureFixture[str], damage: bytes | None, why: str
) -> None:
    write_language(here / "results")
    if damage:
        (here / "results/bench/control.parquet").write_bytes(damage)
    else:
        write(here / "results", "control", [{"round": 1}])
    assert main([*FAST, "figures=[speed]"]) == 1
    error = capsys.readouterr().err
    assert "bench/control.parquet: control.parquet" in error and why in error and error.count("\n") == 1
    assert "measure again with `python benchmarks/control.py 5 results/bench/control.parquet`" in error
    assert {case for case, _ in made(here)} == {GRPO}
