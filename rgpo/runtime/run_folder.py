"""A run's folder: its lock, its state, and moving it aside."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rgpo.errors import ConfigError


def read_state(run_dir: Path) -> dict[str, Any]:
    """The run's state.json, {} if it never started or the file is damaged."""
    try:
        state: dict[str, Any] = json.loads((run_dir / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return state


def status(run_dir: Path) -> str:
    """missing, running, completed, failed or interrupted; a running state whose process is gone is interrupted."""
    state = read_state(run_dir)
    if state.get("status") == "running" and not is_locked(run_dir):
        return "interrupted"
    return str(state.get("status", "missing"))


def write_state(run_dir: Path, **facts: Any) -> None:
    """Replace state.json atomically."""
    aside = run_dir / ".state.json.writing"
    now = datetime.now(UTC).isoformat(timespec="seconds")
    aside.write_text(json.dumps({**facts, "pid": os.getpid(), "updated": now}, indent=1) + "\n")
    aside.replace(run_dir / "state.json")


@contextmanager
def lock(run_dir: Path) -> Iterator[bool]:
    """Hold the run's folder; yields False if another process holds it. The kernel lets go of it however we die."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"results_dir: cannot write {run_dir} ({error.strerror}); choose another results_dir.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def is_locked(run_dir: Path) -> bool:
    """Whether a living process holds the run's folder."""
    path = run_dir / ".lock"
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def move_aside(run_dir: Path) -> Path | None:
    """Rename an existing run folder to <name>.old<k>; returns where it is now."""
    if not run_dir.exists():
        return None
    k = 1
    while (target := run_dir.with_name(f".{run_dir.name}.old{k}")).exists():
        k += 1
    run_dir.rename(target)
    return target


def prepare(run_dir: Path, force: bool) -> None:
    """Refuse a folder that cannot be written; with force move an old run aside, unless it is running. ConfigError."""
    with lock(run_dir) as mine:
        if force and mine and any(file.name != ".lock" for file in run_dir.iterdir()):  # the lock has just made the folder
            try:
                aside = move_aside(run_dir)
            except OSError as error:
                raise ConfigError(f"force=true: cannot move {run_dir} aside ({error.strerror}).") from error
            print(f"moved the earlier run to {aside}")
