"""Ways to damage one file of a run folder."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def the_run(results: Path) -> Path:
    """The run that gets damaged: the one of seed 1."""
    return next(path for path in results.glob("*/*-s1-*") if not path.name.startswith("."))


def other(path: Path) -> Path:
    """The same file of the neighbor, or any of its files."""
    run = next(part for part in path.parents if "-s1-" in part.name)
    neighbor = next(run.parent.glob("*-s2-*"))
    same = neighbor / path.relative_to(run)
    return same if same.is_file() else neighbor / ("metrics.parquet" if path.suffix == ".parquet" else "config.yaml")


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(path.stat().st_size, 1)))


def garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.choice((1, path.stat().st_size, 100_000))))


def overwrite_block(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(max(len(data), 1))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.choice((b"\0" * 4096, b"\n[1, 2]\n", rng.randbytes(100))))


def other_type(path: Path, rng: random.Random) -> None:
    if path.suffix == ".parquet":
        columns = {"iteration": ["one", "two"], "attempt": [None, None], "run_id": [1.5, 2.5], "env_steps": [[1], [2]]}
        pq.write_table(pa.table(dict(rng.sample(sorted(columns.items()), rng.randint(1, 4)))), path)
    elif path.suffix == ".pt":
        import torch

        torch.save(rng.choice(([1, 2], {"format": 5}, {"format": [5]}, "word", torch.zeros(3))), path)
    else:
        path.write_text(rng.choice(("[]", "null", "3", '"text"', "true", '{"a": {"b": [1]}}', "{}", "[[[[]]]]")))


def other_values(path: Path, rng: random.Random) -> None:
    """One value of a JSON or YAML mapping gets another type."""
    try:
        content = json.loads(path.read_text())
        key = rng.choice(sorted(content))
        content[key] = rng.choice((None, [], {}, -1, 10**30, "text", True, float("nan"), 0))
        path.write_text(json.dumps(content))
    except (ValueError, TypeError, IndexError):
        lines = path.read_bytes().splitlines(keepends=True) or [b"text"]  # of an empty file
        lines[rng.randrange(len(lines))] = b"" if len(lines) > 1 else b"other text"
        path.write_bytes(b"".join(lines))


def encoding(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes().decode("latin-1").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32"))))


def swap(path: Path, rng: random.Random) -> None:
    shutil.copyfile(other(path), path)


def directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "file").write_text("text")


def fifo(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link(to: Callable[[Path], Path], path: Path, rng: random.Random) -> None:
    target = to(path)
    path.unlink()
    path.symlink_to(target)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "deleted": lambda path, rng: path.unlink(),
    "emptied": empty,
    "truncated": truncate,
    "garbage": garbage,
    "a block of zeros": overwrite_block,
    "extended": append,
    "other type": other_type,
    "other values": other_values,
    "other encoding": encoding,
    "swapped": swap,
    "a directory": directory,
    "a fifo": fifo,
    "a link to the neighbor's": partial(link, lambda path: other(path).absolute()),
    "a link to nothing": partial(link, lambda path: path.with_name("nothing")),
    "a link to itself": partial(link, lambda path: path),
    "a link to /dev/zero": partial(link, lambda path: Path("/dev/zero")),
}
