"""The table at the end of a sweep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import report_fixtures as fixtures

from rgpo.cli import outcome
from rgpo.cli.config import Job


def a_run(here: Path, algo: str, seed: int, level: float | None) -> tuple[Job, Path]:
    """A finished run of two columns whose last tenth, two of twenty rows, has the given return."""
    rows = {"kl/old_exact": np.full(20, 0.25), "return/train_mean": np.zeros(20)}
    if level is None:
        del rows["return/train_mean"]
    else:
        rows["return/train_mean"][-2:] = level
    folder = fixtures.write_run(here / "results", "hopper", algo, seed, 20, metrics=rows)
    words = (f"seed={seed}", "task=hopper", f"algo={algo}")
    return Job(words, {"choices": {"task": "hopper"}, "results_dir": "my results", "name": "first_evidence"}, folder), folder


def test_mean_standard_error_and_the_best(tmp_path: Path) -> None:
    """Returns 1, 2, 3 have the standard error 1/sqrt(3); words that all runs share are left out."""
    done = [a_run(tmp_path, "ppo", seed, float(seed)) for seed in (1, 2, 3)] + [a_run(tmp_path, "trpo", 1, 1.5)]
    shown = outcome.results(done).splitlines()
    assert shown[0].split() == ["cell", "final", "return,", "mean", "+-", "SE", "(n)", "final", "KL"]
    assert shown[1].split() == ["algo=ppo", "2", "+-", "0.577", "(3)", "highest", "mean", "0.25"]
    assert shown[2].split() == ["algo=trpo", "1.5", "(1)", "0.25"]
    assert shown[3] == "`rgpo-report 'results_dir=my results' experiment=first_evidence` draws them"


def test_what_was_not_measured_or_is_damaged_is_never_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = [a_run(tmp_path, "ppo", 1, -5.0), a_run(tmp_path, "trpo", 1, None), a_run(tmp_path, "rgpo", 1, 9.0)]
    (done[2][1] / "metrics.parquet").write_bytes(b"PAR1")
    shown = outcome.results(done)
    assert "algo=ppo   -5 (1)  highest mean" in shown and shown.count("not measured") == 2
    assert "metrics.parquet cannot be read" in capsys.readouterr().err


def test_progress_counts_runs_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes share the file; after two of four runs in 100 seconds, 100 seconds are left."""
    first, second = (outcome.Tally(tmp_path / "new" / "tally", 4, 1000.0) for _ in range(2))
    monkeypatch.setattr(outcome.time, "time", lambda: 1100.0)
    assert first.add(failed=False) == "1 of 4 runs ended, about 5 min left"
    assert second.add(failed=True) == "2 of 4 runs ended, 1 failed, about 100 s left"
    first.add(failed=False)
    assert second.add(failed=False) == "4 of 4 runs ended, 1 failed"
    (tmp_path / "file").touch()
    lost = outcome.Tally(tmp_path / "file" / "tally", 4, 1000.0).add(failed=False)
    assert lost.startswith("progress is not known") and "File exists" in lost
    assert [outcome.duration(x) for x in (0.4, 119, 120, 7200, 86400)] == ["0 s", "119 s", "2 min", "2 h", "24 h"]
