"""Links, pipes and folders planted under the names of a run's files are replaced or refused, and never written through.

Also the culprits of failures: the disk, the task, a reader of the output that left, or whoever deleted the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from cli import TINY, the_run
from test_runner import Halve, Line, Point, run

from rgpo import atomic
from rgpo.core.rollout import Rollout
from rgpo.errors import ConfigError, StorageError
from rgpo.learning.types import Metrics
from rgpo.runtime import metrics, provenance, run_folder
from rgpo.runtime.signals import Interrupted
from rgpo.runtime.streams import tolerant_output

SECRET = "not yours"
REFUSED = {  # where something planted cannot be replaced or set aside
    ".lock": "is not a regular file; remove it",
    "checkpoint.pt": "use force=true",
    "checkpoint-previous.pt": "use force=true",
    "metrics": "cannot write metrics",
    "samples": "cannot write samples",
}


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "secret")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent.parent / "new")


def folder_link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "theirs", target_is_directory=True)


PLANTS: list[Callable[[Path], None]] = [link, dangling, folder_link, os.mkfifo, os.mkdir]
NAMES = [".lock", "config.yaml", "provenance.json", "state.json", "checkpoint.pt", "checkpoint-previous.pt", "manifest.json"]
NAMES += ["error.txt", "metrics.parquet", "samples.parquet", "metrics", "samples", ".state.json.writing"]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions)
    monkeypatch.setattr(provenance, "_commit", lambda: (None, False))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def outside(tmp_path: Path) -> Callable[[], bool]:
    """True while nothing beside the run's folder has changed."""
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "part-0001-000000.parquet").write_text(SECRET)

    def same() -> bool:
        inside = [path.name for path in (tmp_path / "theirs").iterdir()]
        return (tmp_path / "secret").read_text() == SECRET and not (tmp_path / "new").exists() and inside == [*inside[:1]]

    return same


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("when", ["before", "half"])
def test_planted_files_are_replaced_or_refused(
    when: str, name: str, plant: Callable[[Path], None], tmp_path: Path, outside: Callable[[], bool]
) -> None:
    run_dir = tmp_path / "run"
    if when == "half":
        with pytest.raises(Interrupted):
            run(run_dir, Line(fails_at=5))
    run_dir.mkdir(exist_ok=True)
    path = run_dir / name
    if os.path.lexists(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    plant(path)
    try:
        assert run(run_dir, checkpoint_every_s=1000) == "completed"
    except (ConfigError, StorageError) as error:
        assert REFUSED.get(name, "?") in str(error) and "\n" not in str(error), error
    else:
        frame = pd.read_parquet(run_dir / "metrics.parquet")
        assert frame.iteration.tolist() == list(range(1, 11))
    assert outside()


def test_planted_parts_are_set_aside(tmp_path: Path, outside: Callable[[], bool]) -> None:
    (tmp_path / "run" / "metrics").mkdir(parents=True)
    for number, plant in enumerate(PLANTS):
        plant(tmp_path / "run" / "metrics" / f"part-0001-00000{number}.parquet")
    (tmp_path / "run" / "metrics" / "mine.txt").write_text(SECRET)
    assert run(tmp_path / "run") == "completed" and outside()
    assert [path.name for path in (tmp_path / "run" / "metrics").iterdir()] == ["mine.txt"]  # only what is ours is removed


def test_a_results_folder_that_is_a_link_is_used(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to("disk")
    assert run(tmp_path / "results" / "run") == "completed" and (tmp_path / "disk" / "run" / "metrics.parquet").exists()


def test_a_lock_keeps_its_contents(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(SECRET)
    with atomic.locked(tmp_path / ".lock", wait=False) as mine:
        assert mine and (tmp_path / ".lock").read_text() == SECRET


class Deleting(Halve):
    """Runs a function before its third update."""

    def __init__(self, action: Callable[[], object]) -> None:
        super().__init__()
        self.action = action

    def learn(self, policy: Point, rollout: Rollout, measure_variance: bool) -> Metrics:
        if self.num_steps == 2:
            self.action()
        return super().learn(policy, rollout, measure_variance)


def test_a_deleted_folder_is_named(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(StorageError) as error:
        run(run_dir, algorithm=Deleting(lambda: shutil.rmtree(run_dir)))
    assert "was deleted or moved while the run was using it; repeat the command to start it again" in str(error.value)
    assert "kept" not in str(error.value) and not run_dir.exists()


def test_a_folder_whose_contents_were_deleted_is_named(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def empty() -> None:
        shutil.rmtree(run_dir)
        run_dir.mkdir()

    with pytest.raises(StorageError, match="was deleted or moved while the run was using it; repeat the command") as error:
        run(run_dir, algorithm=Deleting(empty))
    assert "kept" not in str(error.value) and not any(run_dir.iterdir())


def test_a_folder_that_another_process_created_anew_is_left_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def replace() -> None:
        run_dir.rename(tmp_path / "old")
        run_dir.mkdir()
        (run_dir / ".lock").touch()

    with pytest.raises(StorageError, match="was deleted or moved"):
        run(run_dir, algorithm=Deleting(replace))
    assert [path.name for path in run_dir.iterdir()] == [".lock"]


def test_a_part_deleted_while_the_run_goes_on_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    with pytest.raises(StorageError, match=r"part files with 1 row\(s\) of metrics were deleted; repeat the command"):
        run(run_dir, algorithm=Deleting(lambda: metrics.part_files(run_dir / "metrics")[0].unlink()))
    assert run(run_dir) == "completed" and "the metrics of iteration 1 are missing" in capsys.readouterr().out
    assert len(pd.read_parquet(run_dir / "metrics.parquet")) == 10


def test_the_error_of_a_task_is_its_own(tmp_path: Path) -> None:
    def fails() -> None:
        (tmp_path / "simulator.bin").open()

    with pytest.raises(FileNotFoundError):
        run(tmp_path / "run", algorithm=Deleting(fails))
    assert "simulator.bin" in str(run_folder.read_state(tmp_path / "run")["reason"])
    assert '(tmp_path / "simulator.bin").open()' in (tmp_path / "run" / "error.txt").read_text()
    assert run(tmp_path / "run") == "completed"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock",
        "checkpoint-previous.pt",
        "checkpoint.pt",
        "config.yaml",
        "manifest.json",
        "metrics.parquet",
        "provenance.json",
        "state.json",
    ]


def test_the_traceback_of_an_earlier_attempt_does_not_stay(tmp_path: Path) -> None:
    def boom() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        run(tmp_path / "run", algorithm=Deleting(boom))
    assert (tmp_path / "run" / "error.txt").exists()
    with pytest.raises(ConfigError):
        run(tmp_path / "run", algorithm=Halve("mine/los"))
    assert not (tmp_path / "run" / "error.txt").exists()


@pytest.mark.parametrize("words", ["| head -1", "2>&1 | head -1", "> /dev/full", ">&-"])
def test_a_broken_output_does_not_stop_the_run(words: str, tmp_path: Path) -> None:
    command = f"set -o pipefail; {sys.executable} -m rgpo.cli.run {' '.join(TINY)} {words}"
    process = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0 and "Traceback" not in process.stderr and "BrokenPipe" not in process.stderr, process.stderr
    run_dir = the_run(tmp_path / "results")
    assert json.loads((run_dir / "state.json").read_text())["status"] == "completed" and not (run_dir / "error.txt").exists()


def test_output_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with tolerant_output(), tolerant_output():
        print("seen", flush=True)
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "seen\n"
