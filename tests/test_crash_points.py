"""A power cut after any operation on the disk, with unsynced data lost, costs no row: the repeated command completes the run.

The operations of a short run, which is interrupted once, are recorded. The disk after each of them is rebuilt in four ways:
everything done (a killed process); names done but unsynced contents lost; neither names nor contents done unless synced; and a
random choice for each name.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_runner import CONFIG, Halve, Line, Point

from rgpo import atomic
from rgpo.learning.types import State
from rgpo.runtime import manifest, provenance, run_folder, runner
from rgpo.runtime.signals import Interrupted

NUM_ITERATIONS = 3
WAYS = ("killed", "contents lost", "names lost", "mixed")
Operation = tuple[Any, ...]


class Sampling(Line):
    """The smallest task, with one sample per iteration and one of the reference policy."""

    reference = True

    def take_samples(self) -> Iterable[Mapping[str, object]]:
        sample = {"prompt_id": 0, "prompt": "p", "completion": "c", "proxy": 0.5, "gold": 1.0, "kl_ref": 0.0, "length": 1}
        first, self.reference = self.reference, False
        return [{**sample, "finished": True, "reference": x} for x in ((True, False) if first else (False,))]

    def state_dict(self) -> State:
        return {"reference": self.reference}

    def load_state_dict(self, state: State) -> None:
        self.reference = bool(state["reference"])


class Short(Halve):
    def setup(self, policy: Point, num_iterations: int, seed: int) -> None:
        assert num_iterations == NUM_ITERATIONS


def run(run_dir: Path, fails_at: int = 0) -> str:
    config = CONFIG | {"total_env_steps": 10 * NUM_ITERATIONS}
    return runner.run(config, Sampling(fails_at), Short(), run_dir, "0" * 8, "rgpo-run")


class RecordingOs:
    """The os module, with a list of what changed on the disk."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._paths: dict[int, Path] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        new = flags & os.O_CREAT and not os.path.lexists(path)
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = Path(path)
        if new:
            self.operations.append(("create", Path(path)))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        size = os.write(descriptor, data[: len(data) // 2 + 1])  # in pieces, so that half-written files are seen
        self.operations.append(("write", self._paths[descriptor], bytes(data[:size])))
        return size

    def fsync(self, descriptor: int) -> None:
        self.operations.append(("fsync", self._paths[descriptor]))

    def replace(self, path: Path, target: Path) -> None:
        os.replace(path, target)  # noqa: PTH105
        self.operations.append(("replace", Path(path), Path(target)))

    def unlink(self, path: Path) -> None:
        os.unlink(path)  # noqa: PTH108
        self.operations.append(("unlink", Path(path)))

    def mkdir(self, path: Path) -> None:
        os.mkdir(path)  # noqa: PTH102
        self.operations.append(("mkdir", Path(path)))

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)  # noqa: PTH106
        self.operations.append(("rmdir", Path(path)))


class Disk:
    """Names and contents, as programs see them and as they are on the disk."""

    def __init__(self) -> None:
        self.contents: dict[int, bytes] = {}  # of a file by its number
        self.synced: dict[int, bytes] = {}
        self.names: dict[Path, int | None] = {}  # file, or None for a folder
        self.pending: list[tuple[Path, dict[Path, Any]]] = []  # changes of a folder's names that are not on the disk
        self.names_synced: dict[Path, int | None] = {}

    def apply(self, operation: Operation) -> None:
        kind, path, *rest = operation
        if kind == "create":
            number = len(self.contents)
            self.contents[number] = self.synced[number] = b""
            self._rename(path.parent, {path: number})
        elif kind == "write":
            self.contents[self.names[path]] += rest[0]
        elif kind == "fsync" and path in self.names and self.names[path] is not None:
            self.synced[self.names[path]] = self.contents[self.names[path]]
        elif kind == "fsync":
            for _, change in [change for change in self.pending if change[0] == path]:
                _change(self.names_synced, change)
            self.pending = [change for change in self.pending if change[0] != path]
        elif kind == "replace":
            number = self.names[path]
            if path.parent == rest[0].parent:
                self._rename(path.parent, {path: "gone", rest[0]: number})
            else:
                self._rename(rest[0].parent, {rest[0]: number})
                self._rename(path.parent, {path: "gone"})
        else:
            self._rename(path.parent, {path: None if kind == "mkdir" else "gone"})

    def _rename(self, folder: Path, change: dict[Path, Any]) -> None:
        _change(self.names, change)
        self.pending.append((folder, change))

    def after_crash(self, way: str, rng: random.Random) -> dict[Path, bytes | None]:
        """Path -> contents, None for a folder."""
        names = dict(self.names if way in ("killed", "contents lost") else self.names_synced)
        if way == "mixed":
            for _, change in self.pending:
                if rng.random() < 0.5:
                    _change(names, change)
        found: dict[Path, bytes | None] = {}
        for path, number in names.items():
            if number is None:
                found[path] = None
                continue
            whole, safe = self.contents[number], self.synced[number]
            lost = whole[: rng.randint(0, len(whole))] if way == "mixed" and whole != safe else safe
            found[path] = whole if way == "killed" else lost
        return found


def _change(names: dict[Path, Any], change: dict[Path, Any]) -> None:
    for path, number in change.items():
        if number == "gone":
            names.pop(path, None)
        else:
            names[path] = number


def rebuild(found: Mapping[Path, bytes | None], root: Path, target: Path) -> None:
    for path in sorted(path for path, data in found.items() if data is None):
        (target / path.relative_to(root)).mkdir(parents=True, exist_ok=True)
    for path, data in found.items():
        place = target / path.relative_to(root)
        if data is not None and place.parent.is_dir():
            place.write_bytes(data)


def outcome(run_dir: Path) -> list[pd.DataFrame]:
    """Metrics and samples without what reads a clock or counts attempts."""
    frames = [pd.read_parquet(run_dir / name) for name in run_folder.ROWS if (run_dir / name).exists()]
    return [frame[[name for name in frame if not name.startswith(("time/", "speed/")) and name != "attempt"]] for frame in frames]


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    versions = provenance.versions()
    monkeypatch.setattr(provenance, "versions", lambda: versions)
    monkeypatch.setattr(provenance, "_commit", lambda: (None, False))
    root = tmp_path / "recorded"
    root.mkdir()
    recording = RecordingOs()
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "os", recording)
        with pytest.raises(Interrupted):
            run(root / "run", fails_at=2)
        run(root / "run")
    disk = Disk()
    for operation in recording.operations:
        disk.apply(operation)
    seen = {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}
    assert disk.after_crash("killed", random.Random(0)) == seen  # nothing was written past the recording
    assert seen.items() <= disk.after_crash("names lost", random.Random(0)).items()  # and all that is left is durable
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return recording.operations


def test_a_power_cut_after_any_operation_costs_no_row(recorded: list[Operation], tmp_path: Path) -> None:
    root, expected = tmp_path / "recorded", outcome(tmp_path / "recorded" / "run")
    assert expected[0].iteration.tolist() == [1, 2, 3] and expected[1].iteration.tolist() == [0, 1, 2, 3]
    disk, rng = Disk(), random.Random(0)
    done: set[str] = set()
    for number, operation in enumerate(recorded):
        disk.apply(operation)
        for way in WAYS:
            found = disk.after_crash(way, rng)
            signature = repr(sorted((str(path), data) for path, data in found.items() if data is not None))
            if signature in done:
                continue
            done.add(signature)
            target = tmp_path / f"{number}-{way}"
            target.mkdir()
            rebuild(found, root, target)
            where = f"{way} after operation {number}, {operation[:2]}"
            assert run(target / "run") in ("completed", "skipped"), where
            for ours, theirs in zip(outcome(target / "run"), expected, strict=True):
                pd.testing.assert_frame_equal(ours, theirs, obj=where)
            assert run_folder.status(target / "run") == "completed" and manifest.problems(target / "run") == [], where
            assert not (target / "run" / "metrics").exists() and not list(target.rglob(".*.writing")), where
            assert not list(target.rglob("*.damaged*")), where
    assert len(done) > 200


def test_the_replay_notices_a_missing_sync(recorded: list[Operation], tmp_path: Path) -> None:
    """The must-fail side: without fsync of files, some power cut leaves an empty checkpoint or part."""
    disk = Disk()
    for operation in recorded:
        if operation[0] != "fsync" or operation[1].is_dir():
            disk.apply(operation)
    found = disk.after_crash("contents lost", random.Random(0))
    assert found[tmp_path / "recorded" / "run" / "checkpoint.pt"] == b""
