"""The manifest of a finished run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rgpo.runtime import manifest

CONTENTS = {"config.yaml": b"a: 1\n", "metrics.parquet": b"PAR1", "checkpoint.pt": b"weights"}


def finished(folder: Path) -> Path:
    for name, data in CONTENTS.items():
        (folder / name).write_bytes(data)
    manifest.write(folder, attempt=2, num_iterations=10)
    return folder


def test_a_manifest_finds_every_flipped_bit(tmp_path: Path) -> None:
    run_dir = finished(tmp_path)
    assert manifest.problems(run_dir) == [] and manifest.read(run_dir)["attempt"] == 2
    for name, data in CONTENTS.items():
        for bit in range(8 * len(data)):
            (run_dir / name).write_bytes(bytes(byte ^ (1 << bit % 8) * (k == bit // 8) for k, byte in enumerate(data)))
            assert manifest.problems(run_dir) == [f"{name} is damaged (checksum)"]
            assert manifest.problems(run_dir, {"provenance.json"}) == []
        (run_dir / name).write_bytes(data)


def test_a_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    path = finished(tmp_path) / manifest.NAME
    data, same = path.read_bytes(), manifest.read(tmp_path)
    for place in range(0, 8 * len(data), 3):
        path.write_bytes(bytes(byte ^ (1 << place % 8) * (k == place // 8) for k, byte in enumerate(data)))
        assert manifest.problems(tmp_path) or manifest.read(tmp_path) == same  # white space carries nothing


def test_the_manifest_of_another_run_is_named(tmp_path: Path) -> None:
    ours, theirs = (tmp_path / name for name in ("ours", "theirs"))
    for folder in (ours, theirs):
        folder.mkdir()
        finished(folder)
    for name in CONTENTS:
        (theirs / name).write_bytes(b"another run's")
    manifest.write(theirs)
    (ours / manifest.NAME).write_bytes((theirs / manifest.NAME).read_bytes())
    first, *others = manifest.problems(ours)
    assert first.startswith("manifest.json fits none of the files") and len(others) == len(CONTENTS)


@pytest.mark.parametrize(
    ("plant", "why"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (
            lambda path: (path.touch(), os.truncate(path, 1 << 40)),
            "bytes, 4 were recorded",
        ),  # at once, without reading a terabyte
    ],
)
def test_odd_files_are_named(plant, why: str, tmp_path: Path) -> None:
    path = finished(tmp_path) / "metrics.parquet"
    path.unlink()
    plant(path)
    (found,) = manifest.problems(tmp_path)
    assert found.startswith("metrics.parquet ") and why in found


def test_a_folder_of_an_earlier_version_has_no_problems(tmp_path: Path) -> None:
    assert manifest.problems(tmp_path) == []
    assert manifest.part_damage(tmp_path / "part-0001-000000.parquet") == ""


def test_a_part_carries_its_digest_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / manifest.part_name(1, 0, b"rows")
    path.write_bytes(b"rows")
    assert manifest.part_damage(path) == ""
    path.write_bytes(b"rowt")
    assert manifest.part_damage(path) == f"{path.name} is damaged (checksum)"
