"""Damage to the files of a run is found, named and never used; measured rows are kept or reported as lost."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_runner import CONFIG, Line, run

from rgpo.errors import ConfigError, OutOfMemory
from rgpo.report.read import load
from rgpo.report.read.reduce import Detail
from rgpo.runtime import checkpoint, manifest, run_folder
from rgpo.runtime.reader import Unreadable
from rgpo.runtime.signals import Interrupted

# Runs of the smallest task: nothing is lost with state.json, and lost rows are measured again.


def rows(run_dir: Path) -> pd.DataFrame:
    frame = pd.read_parquet(run_dir / "metrics.parquet")
    others = ("run_id", "git_sha", "attempt")
    return frame[[name for name in frame if not name.startswith(("time/", "speed/")) and name not in others]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run(run_dir) == "completed"
    return run_dir


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run that was interrupted in its seventh iteration, with one part per iteration."""
    with pytest.raises(Interrupted):
        run(tmp_path / "half", Line(fails_at=7))
    return tmp_path / "half"


def part(run_dir: Path, number: int) -> Path:
    return sorted((run_dir / "metrics").iterdir())[number]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


STATES = [None, "", "[]", "{", '{"status": "running", "attempt": 0}', '{"status": "failed"}', '{"status": 3}', "[" * 100_000]
STATES += [
    '{"status": "interrupted", "attempt": -5, "iteration": 2}',
    '{"status": "completed", "attempt": 0, "num_iterations": 3}',
]


@pytest.mark.parametrize("text", STATES)
def test_a_finished_run_keeps_its_rows_without_its_state(
    text: str | None, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (copy / name).read_bytes() for name in ("metrics.parquet", "checkpoint.pt", "manifest.json")}
    state = json.loads((copy / "state.json").read_text())
    (copy / "state.json").unlink() if text is None else (copy / "state.json").write_text(text)
    if text in (None, "", "[]"):
        assert run_folder.status(copy) == "completed"
    assert run(copy) == "skipped" and "already complete" in capsys.readouterr().out
    assert {name: (copy / name).read_bytes() for name in before} == before
    repaired = json.loads((copy / "state.json").read_text())
    assert {**repaired, "pid": 0, "updated": ""} == {**state, "pid": 0, "updated": ""}


@pytest.mark.parametrize("text", STATES[:5])
def test_a_finished_run_without_state_and_manifest_keeps_its_rows(text: str | None, copy: Path, whole: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "state.json").unlink() if text is None else (copy / "state.json").write_text(text)
    assert run(copy) == "completed"
    pd.testing.assert_frame_equal(pd.read_parquet(copy / "metrics.parquet"), pd.read_parquet(whole / "metrics.parquet"))
    assert run_folder.read_state(copy)["attempt"] == 2 and manifest.problems(copy) == []


@pytest.mark.parametrize("lost", [["state.json"], ["state.json", "provenance.json", "config.yaml"], ["checkpoint.pt"]])
def test_a_half_finished_run_resumes_without_its_state(
    lost: list[str], half: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in lost:
        (half / name).unlink()
    capsys.readouterr()
    run(half)
    out = capsys.readouterr().out
    after = 5 if "checkpoint.pt" in lost else 6
    assert f"attempt 2 resumes after iteration {after} of 10" in out
    assert ("checkpoint.pt is missing\n  the run continues after iteration 5" in out) == (after == 5)
    pd.testing.assert_frame_equal(rows(half), rows(whole))
    assert pd.read_parquet(half / "metrics.parquet").attempt.tolist() == [1] * after + [2] * (10 - after)


@pytest.mark.parametrize(("number", "after"), [(5, "after iteration 5"), (3, "from the beginning")])
@pytest.mark.parametrize("how", ["deleted", "flipped", "truncated", "emptied", "a folder", "a pipe"])
def test_lost_rows_are_named_and_measured_again(
    how: str, number: int, after: str, half: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = part(half, number)
    data = victim.read_bytes()
    if how == "flipped":
        flip(victim, 4000)
    elif how in ("truncated", "emptied"):
        victim.write_bytes(data[: len(data) // 2] if how == "truncated" else b"")
    else:
        victim.unlink()
        if how != "deleted":
            victim.mkdir() if how == "a folder" else os.mkfifo(victim)
    capsys.readouterr()
    run(half)
    out = capsys.readouterr().out
    assert f"the metrics of iteration {number + 1} are missing; the run continues {after}\n" in out
    aside = half / f"{victim.name}.damaged"
    assert how == "deleted" or (f"it was renamed to {aside.name}" in out and os.path.lexists(aside))
    pd.testing.assert_frame_equal(rows(half), rows(whole))


def test_rows_of_a_lost_checkpoint_stay_until_they_are_measured_again(half: Path, whole: Path) -> None:
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (half / name).unlink()
    with pytest.raises(Interrupted):
        run(half, Line(fails_at=3))
    frame = pd.read_parquet(half / "metrics").sort_values("iteration")
    assert frame.iteration.tolist() == [1, 2, 3, 4, 5, 6] and frame.attempt.tolist() == [2, 2, 1, 1, 1, 1]
    run(half)
    pd.testing.assert_frame_equal(rows(half), rows(whole))


def test_a_part_of_another_run_is_set_aside(
    half: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setitem(CONFIG, "seed", 4)
        run(tmp_path / "other", Line(fails_at=7))
    part(half, 1).unlink()
    foreign = Path(shutil.copy(part(tmp_path / "other", 1), half / "metrics"))
    with pytest.raises(Unreadable, match="not the configuration that its rows were measured with"):
        load.read_run(half, (), Detail(0.1, (), 20))
    capsys.readouterr()
    assert run(half) == "completed"
    out = capsys.readouterr().out
    assert f"{foreign.name} is of another run; it was renamed to {foreign.name}.damaged\n" in out
    assert "the metrics of iteration 2 are missing; the run continues from the beginning" in out
    pd.testing.assert_frame_equal(rows(half), rows(whole))


def test_lost_samples_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_crash_points import Sampling

    with pytest.raises(Interrupted):
        run(tmp_path / "run", Sampling(fails_at=5))
    sorted((tmp_path / "run" / "samples").iterdir())[0].unlink()
    run(tmp_path / "run", Sampling())
    assert "2 of 5 samples are missing; the run continues from the beginning" in capsys.readouterr().out
    assert pd.read_parquet(tmp_path / "run" / "samples.parquet").iteration.tolist() == list(range(11))


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_damaged_metrics_of_a_finished_run_are_set_aside_and_measured_again(
    how: str, copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "metrics.parquet"
    if how == "flipped":
        flip(path, 8 * (path.stat().st_size - 30))  # in the footer
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.unlink()
    run_folder.prepare(copy, force=False)
    assert run_folder.status(copy) == "interrupted" and "metrics.parquet" in str(run_folder.read_state(copy)["reason"])
    assert run(copy) == "completed"
    assert "the metrics of iterations 1 to 10 are missing; the run continues from the beginning" in capsys.readouterr().out
    pd.testing.assert_frame_equal(rows(copy), rows(whole))
    assert (copy / "metrics.parquet.damaged").exists() == (how != "deleted") and manifest.problems(copy) == []


def test_a_damaged_checkpoint_of_a_finished_run_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(copy / "checkpoint.pt", 999)
    assert run(copy) == "skipped" and "; checkpoint.pt is damaged (checksum)\n" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged \(checksum\); checkpoint-previous\.pt is used"):
        found = checkpoint.load(copy, "0" * 8)
    assert found is not None and found["iteration"] == 9


def test_no_flipped_bit_of_a_checkpoint_is_used(half: Path) -> None:
    """Every header bit and a sample of the others; the previous checkpoint is taken instead."""
    path = half / "checkpoint.pt"
    data, rng = path.read_bytes(), random.Random(0)
    bits = [*range(8 * checkpoint.HEADER_BYTES), *(rng.randrange(8 * len(data)) for _ in range(400))]
    for bit in bits:
        flip(path, bit)
        found = checkpoint.find(half, "0" * 8)
        assert found.checkpoint is not None and found.checkpoint["iteration"] == 5, bit
        assert found.damage == {"checkpoint.pt": "checkpoint.pt is damaged (checksum)"}
        path.write_bytes(data)


def test_no_flipped_bit_of_a_part_is_used(half: Path) -> None:
    """Bits of pages, page headers and the footer."""
    path, rng = part(half, 2), random.Random(0)
    data = path.read_bytes()
    for bit in (rng.randrange(8 * len(data)) for _ in range(400)):
        flip(path, bit)
        assert manifest.part_damage(path) != "", bit
        path.write_bytes(data)
    assert manifest.part_damage(path) == ""


def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_used(
    half: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(half / "checkpoint.pt", 12345)
    capsys.readouterr()
    run(half)
    out = capsys.readouterr().out
    damage = "checkpoint.pt is damaged (checksum); it was renamed to checkpoint.pt.damaged"
    assert f"  {damage}\n  the run continues after iteration 5\n" in out
    pd.testing.assert_frame_equal(rows(half), rows(whole))


def test_a_checkpoint_larger_than_memory_is_named_before_it_is_read(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(half / checkpoint.NAME, 1 << 42)  # 4 TiB, sparse
    found = checkpoint.find(half, "0" * 8)
    assert found.checkpoint is not None and found.checkpoint["iteration"] == 5
    assert found.damage == {"checkpoint.pt": "checkpoint.pt is damaged (checksum)"}

    def exhaust(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoint, "find", exhaust)
    with pytest.raises(OutOfMemory, match=r"checkpoint\.pt of an earlier attempt is kept"):
        run(half)


def test_lost_checkpoints_are_named(half: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        (half / name).unlink()
    capsys.readouterr()
    assert run(half) == "completed"
    assert (
        "there is no checkpoint of the 6 iteration(s) measured before; the run continues from the beginning\n"
        in capsys.readouterr().out
    )
    pd.testing.assert_frame_equal(rows(half), rows(whole))


def test_the_folder_of_another_run_is_not_this_run(whole: Path, tmp_path: Path) -> None:
    """A copied folder, finished or not, is refused; another name without a hash, and force=true, are not."""
    for name in ("line-mine-s3-00000000", "copy"):
        run_folder.prepare(Path(shutil.copytree(whole, tmp_path / name)), force=False)
    other = Path(shutil.copytree(whole, tmp_path / "line-mine-s4-12345678"))
    for lost in (None, "manifest.json", "state.json"):
        if lost:
            (other / lost).unlink()
        with pytest.raises(ConfigError, match=r"s4-12345678 holds the files of the run run; move the folder away, or use force"):
            run_folder.prepare(other, force=False)
    run_folder.prepare(other, force=True)
    assert run_folder.status(other) == "missing"
    with run_folder.lock(other) as mine:
        assert mine and run_folder.status(other) == "running"  # it has just begun


def test_two_damaged_checkpoints_are_refused(half: Path) -> None:
    before = sorted(file.name for file in (half / "metrics").iterdir())
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        flip(half / name, 12345)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"checkpoint\.pt is damaged.*, checkpoint-previous\.pt is damaged.*; use force=true"
        ):
            run(half)
    assert sorted(file.name for file in (half / "metrics").iterdir()) == before


def test_a_link_in_place_of_the_parts_is_removed_and_what_it_leads_to_stays(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "part.parquet").write_text("precious")
    for name in ("metrics", "samples"):
        (copy / name).symlink_to(outside)
    run_folder.tidy(copy)
    assert not (copy / "metrics").is_symlink() and not (copy / "samples").is_symlink()
    assert (outside / "part.parquet").read_text() == "precious"
