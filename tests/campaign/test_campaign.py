"""A small share of the campaign, and what its judgments rest on: a power cut loses what was not synced, and nothing else."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from . import compare, operations, outcomes
from .commands import Ended, fault, refused

ROOT = Path(__file__).parents[2]
SHARES = {
    "kills": ["kill"],
    "power cuts and disks": ["power cut", "disk", "full", "limit", "stdout", "results folder"],
    "damage": ["damage"],
    "flips and configurations": ["bit flip", "random"],
    "folders and hostile files": ["odd", "hostile", "planted"],
}


@pytest.mark.parametrize("name", SHARES)
def test_no_case_of_the_share_ends_badly(name: str) -> None:
    only = [word for kind in SHARES[name] for word in ("--only", kind)]
    command = [sys.executable, "-m", "tests.campaign", "--share", "--processes", "1", *only]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "| **all** |" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]


def in_child(act: Callable[[], None], folder: Path, kind: operations.Operations) -> int:
    """The exit code of a forked process that acts on a folder under this kind of operations."""
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        kind.install()
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write(name: str, data: bytes, sync: bool) -> None:
    """Replace a file by way of another one, with or without syncing file and folder."""
    with Path(f"{name}.new").open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    Path(f"{name}.new").replace(name)
    if sync:
        folder = os.open(".", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


@pytest.mark.parametrize("seed", range(8))
def test_a_power_cut_keeps_what_was_synced(seed: int, tmp_path: Path) -> None:
    folder, graveyard = tmp_path / "folder", tmp_path / "graveyard"
    folder.mkdir()
    (folder / "synced").write_bytes(b"old")

    def act() -> None:
        write("synced", b"new" * 1000, sync=True)
        Path("end").mkdir()

    cut = operations.PowerCut(folder, graveyard, 5, random.Random(seed))
    assert in_child(act, folder, cut) == 9
    assert (folder / "synced").read_bytes() == b"new" * 1000 and not (folder / "end").exists()


def test_a_power_cut_loses_what_was_not_synced(tmp_path: Path) -> None:
    found = set()
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "file").write_bytes(b"old")

        def act() -> None:
            write("file", b"new" * 1000, sync=False)
            Path("end").mkdir()

        assert in_child(act, folder, operations.PowerCut(folder, tmp_path / f"g{seed}", 3, random.Random(seed))) == 9
        found.add((folder / "file").read_bytes())
    assert b"old" in found and b"" in found and len(found) > 3


def test_operations_are_counted_and_fail_in_turn(tmp_path: Path) -> None:
    def act() -> None:
        for name in "abc":
            try:
                Path(name).write_text(name)
            except OSError as error:
                assert error.errno == 28

    report = tmp_path / "report"
    folder = tmp_path / "folder"
    folder.mkdir()
    count = operations.Operations(folder, lambda k: None, lambda k: operations.void(report.write_text(str(k))))
    assert in_child(act, folder, count) == 0 and report.read_text() == "3"

    def fail(k: int) -> None:
        if k == 2:
            raise OSError(28, "No space left on device")

    for file in folder.iterdir():
        file.unlink()
    assert in_child(act, folder, operations.Operations(folder, fail)) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]


def results(folder: Path, **changes: object) -> Path:
    rows = {"run_id": ["x", "x"], "iteration": [1, 2], "attempt": [1, 1], "kl/old": [0.1, float("nan")], "time/x": [1.0, 2.0]}
    (folder / "exp" / "run").mkdir(parents=True)
    pq.write_table(pa.table(rows | changes), folder / "exp" / "run" / "metrics.parquet")
    return folder


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, outcomes.HELD),
        ({"attempt": [1, 2], "time/x": [3.0, 4.0]}, outcomes.HELD),
        ({"kl/old": [0.1, 0.2]}, outcomes.WRONG),
        ({"kl/old": [0.10000000000000002, float("nan")]}, outcomes.WRONG),
        ({"other": [1, 2]}, outcomes.WRONG),
    ],
)
def test_equal_means_bit_for_bit(change: dict[str, object], outcome: str, tmp_path: Path) -> None:
    assert compare.equal(results(tmp_path / "a", **change), results(tmp_path / "b")).outcome == outcome


def test_missing_runs_rows_and_parts_are_seen(tmp_path: Path) -> None:
    expected = results(tmp_path / "expected")
    assert compare.equal(tmp_path / "nothing", expected).outcome == outcomes.WRONG
    parts = results(tmp_path / "parts")
    (parts / "exp" / "run" / "metrics").mkdir()
    assert "parts" in compare.equal(parts, expected).detail
    assert compare.iterations(expected) == {("x", 1), ("x", 2)}


@pytest.mark.parametrize(
    ("code", "out", "err", "outcome"),
    [
        (0, "fine\n", "", None),
        (2, "", "key=value: wrong; remedy.\n", None),
        (None, "", "", outcomes.HANG),
        (1, "Traceback (most recent call last):\n", "", outcomes.TRACEBACK),
        (-11, "", "", outcomes.TRACEBACK),
        (1, "", "", outcomes.WRONG),
        (0, "\x1b[31mred\n", "", outcomes.WRONG),
        (0, "x" * 10_000, "", outcomes.WRONG),
    ],
)
def test_faults_of_a_command(code: int | None, out: str, err: str, outcome: str | None) -> None:
    found = fault(Ended(("rgpo-run",), code, out, err))
    assert (found.outcome if found else None) == outcome
    assert refused(Ended(("rgpo-run",), 2, "", "one.\ntwo.\n")).outcome == outcomes.WRONG


def test_the_table_counts_each_outcome_and_names_what_failed() -> None:
    kind = outcomes.Kind("some kind", lambda case: outcomes.HELD_WELL, full=3)
    ends = [outcomes.HELD, outcomes.REFUSED, outcomes.HANG]
    finished = [outcomes.Finished(kind, i, outcomes.Result(end, "why"), 0.0) for i, end in enumerate(ends)]
    assert "| some kind | 3 | 1 | 1 | 0 | 0 | 1 |" in outcomes.table(finished)
    (line,) = outcomes.failures(finished, 7)
    assert "--seed 7 --only 'some kind' --case 2" in line and "why" in line
    strict = outcomes.Kind("kill", kind.run, full=1, must_hold=True)
    assert strict.failed(outcomes.Result(outcomes.REFUSED)) and not strict.failed(outcomes.HELD_WELL)
