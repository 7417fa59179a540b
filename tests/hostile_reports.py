"""Reports of results folders with damaged files, and what must hold of them."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixtures as fixtures

import rgpo
from rgpo.report.cli import main

WORDS = ["results_dir=results", "out=report", "format=svg", "num_resamples=200", "figures=[]"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def report(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """Run the report, which must end within seconds with this code and its page; returns what it printed to stderr."""
    began = time.monotonic()
    assert main([*WORDS, *words]) == code
    error = capsys.readouterr().err
    assert time.monotonic() - began < 20
    assert all(character.isprintable() or character == "\n" for character in error)
    assert max(map(len, error.splitlines()), default=0) < 5000
    assert Path("report/index.html").stat().st_size > 10_000
    return error


def assert_alone_left_out(error: str, victim: Path, name: str = "metrics.parquet") -> None:
    """The victim, whose file `name` is damaged, is named, with a reason, and every other run is in the tables."""
    line = next(line for line in error.splitlines() if victim.name in line)
    assert "left out" in line, error
    rows = fixtures.read_csv(Path("report/first_evidence/tables/returns.csv"))
    assert {row["label"]: row["n"] for row in rows} == {"ppo": "3", "rgpo": "2"}
    if name not in ("config.yaml", "metrics.parquet"):
        assert len(rgpo.results("results")) == 6 * 20  # which reads no other file
        return
    with pytest.warns(UserWarning, match=victim.name):
        assert set(rgpo.results("results").run_id) == {d.name for d in victim.parent.iterdir()} - {victim.name}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sock(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


OBJECTS: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "fifo": fifo,
    "socket": sock,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "tty": lambda path: path.symlink_to("/dev/ptmx"),
    "loop": lambda path: path.symlink_to(path.name),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "log": lambda path: path.symlink_to("/proc/kmsg"),
    "empty": Path.touch,
    "huge": lambda path: path.touch() or os.truncate(path, 1 << 40),
    "utf-16": lambda path: path.write_bytes("{}".encode("utf-16")),
    "latin-1": lambda path: path.write_bytes(b"name: caf\xe9"),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("3"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "deep mapping": lambda path: path.write_text('{"a":' * 60_000 + "1" + "}" * 60_000),
    "dashes": lambda path: path.write_text("- " * 100_000 + "1"),
    "integer": lambda path: path.write_text(f'{{"attempt": {"9" * 5000}, "seed": {"9" * 5000}}}'),
    "bomb": lambda path: path.write_text(BOMB),
    "merge bomb": lambda path: path.write_text(BOMB.replace("[", "{<<: [").replace("]", "]}").replace("x, ", "")),
    "recursive": lambda path: path.write_text("a: &a\n  b: *a\n"),
    "object": lambda path: path.write_text("!!python/object/apply:os.system ['touch PWNED']"),
    "date": lambda path: path.write_text("seed: 2026-99-99"),
    "surrogate": lambda path: path.write_text('{"reason": "\\ud800", "command": "\\ud800", "name": "\\ud800"}'),
    "twice": lambda path: path.write_text('{"attempt": 1, "attempt": 2}'),
}
