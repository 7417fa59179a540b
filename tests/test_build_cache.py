"""Two processes that need the same folder: the second shows whom it waits for and how far that is."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path

import pytest

from rgpo.language.assets import Log
from rgpo.language.data import build_cache
from rgpo.language.data.build_cache import BuildReport, build_once


def wait_for(lines: list[str], count: int, changed: threading.Event) -> None:
    while len(lines) < count:
        assert changed.wait(20)
        changed.clear()


def test_who_waits_sees_the_progress_of_the_process_that_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_cache, "POLL_S", 0.01)
    steps = [threading.Event() for _ in range(3)]
    first: list[str] = []
    second: list[str] = []
    changed = threading.Event()

    def build(aside: Path, log: Log) -> BuildReport:
        for i, step in enumerate(steps):
            log(f"epoch {i + 1}/3")
            assert step.wait(20)
        aside.mkdir()
        return {"built": len(steps)}

    def never(aside: Path, log: Log) -> BuildReport:
        raise AssertionError

    def note(line: str) -> None:
        second.append(line)
        changed.set()

    def run(chosen: build_cache.Builder, log: Log) -> threading.Thread:
        thread = threading.Thread(target=build_once, args=(tmp_path / "thing", {"x": 1}, chosen, log, "lock", "thing"))
        thread.start()
        return thread

    builder = run(build, first.append)
    while first != ["epoch 1/3"]:
        time.sleep(0.001)
    waiter = run(never, note)
    for i, step in enumerate(steps):
        wait_for(second, i + 1, changed)
        step.set()
    builder.join(20)
    waiter.join(20)
    assert not builder.is_alive() and not waiter.is_alive() and first == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    who = rf"thing: waiting for process {os.getpid()} on \S+, which builds it since \d\d:\d\d:\d\d"
    assert [re.fullmatch(rf"{who}: epoch {i}/3", line) is not None for i, line in enumerate(second, 1)] == [True] * 3
    assert build_once(tmp_path / "thing", {"x": 1}, never, note, "lock", "thing")["built"] == 3
    assert not list(tmp_path.glob(".*progress*"))


def test_progress_that_cannot_be_read_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / ".lock.progress"
    assert build_cache._read_progress(file) is None
    file.write_bytes(b"\xff\xfe")
    assert build_cache._read_progress(file) is None
    file.write_text("a" * 1000 + "\nb")
    assert build_cache._read_progress(file) == "a" * 300
