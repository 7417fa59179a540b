"""A run's folder: its lock, its state.json, and moving it aside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from rgpo import atomic
from rgpo.errors import ConfigError

LOCK = ".lock"


class RunState(TypedDict, total=False):
    """The contents of state.json."""

    status: str  # running, completed, failed or interrupted
    attempt: int  # number of starts
    iteration: int  # of the last checkpoint, or where the run ended
    num_iterations: int
    reason: str | None  # for a failed or interrupted run
    pid: int
    updated: str  # UTC


def read_state(run_dir: Path) -> RunState:
    """The run's state.json; {} if the run never started or the file is damaged."""
    try:
        state = json.loads((run_dir / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return cast(RunState, state) if isinstance(state, dict) else {}


def status(run_dir: Path) -> str:
    """Status missing, running, completed, failed or interrupted; a running state whose process has ended is interrupted."""
    found = read_state(run_dir).get("status", "missing")
    return "interrupted" if found == "running" and not is_locked(run_dir) else found


def write_state(run_dir: Path, **facts: object) -> None:
    """Replace state.json atomically."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({**facts, "pid": os.getpid(), "updated": now}, indent=1)
    atomic.write_text(run_dir / "state.json", text + "\n")


@contextmanager
def lock(run_dir: Path) -> Iterator[bool]:
    """Create the run's folder and hold it; yields False if another process holds it.

    Raises: ConfigError if the folder cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOCK).touch()
    except OSError as error:
        raise ConfigError(f"results_dir: cannot write {run_dir} ({error.strerror}); choose another results_dir.") from error
    with atomic.locked(run_dir / LOCK, wait=False) as mine:
        yield mine


def is_locked(run_dir: Path) -> bool:
    """True if a living process holds the run's folder."""
    return atomic.is_locked(run_dir / LOCK)


def move_aside(run_dir: Path) -> Path | None:
    """Rename an existing run folder to .<name>.old<k>; returns its new path."""
    if not run_dir.exists():
        return None
    k = 1
    while (target := run_dir.with_name(f".{run_dir.name}.old{k}")).exists():
        k += 1
    run_dir.rename(target)
    return target


def prepare(run_dir: Path, force: bool) -> None:
    """Create the run's folder; with force, move an earlier run aside unless it is running.

    Raises: ConfigError if the folder cannot be written or moved.
    """
    with lock(run_dir) as mine:
        if force and mine and any(file.name != LOCK for file in run_dir.iterdir()):  # the lock itself creates the folder
            try:
                aside = move_aside(run_dir)
            except OSError as error:
                raise ConfigError(f"force=true: cannot move {run_dir} aside ({error.strerror}).") from error
            print(f"moved the earlier run to {aside}")
