"""A run's folder: lock, state.json, check for completeness, and moving it aside."""

from __future__ import annotations

import json
import os
import re
import stat
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict

from rgpo import atomic
from rgpo.errors import ConfigError, EnvironmentFault, StorageError, escaped
from rgpo.runtime import manifest, reader
from rgpo.runtime.provenance import redact

LOCK, ERROR = ".lock", "error.txt"
ROWS = ("metrics.parquet", "samples.parquet", "rollouts.parquet")
MAX_ATTEMPT = 10**8


class RunState(TypedDict, total=False):
    """The contents of state.json."""

    status: Literal["running", "completed", "failed", "interrupted"]
    attempt: int  # number of this start, from 1
    iteration: int  # of the last checkpoint, or the one at which the run ended
    num_iterations: int
    reason: str | None  # for a failed or interrupted run
    pid: int
    updated: str  # UTC


class _Attempt(TypedDict):
    attempt: int


class _Start(TypedDict):
    started: str  # UTC


class _Origin(TypedDict):
    run_id: str
    config_hash: str


def read_state(run_dir: Path) -> RunState:
    """The run's state.json; {} if the run never started or the file is damaged."""
    try:
        return reader.read_json(run_dir / "state.json", RunState)
    except reader.Unreadable:
        return {}


def status(run_dir: Path) -> str:
    """The run's status: missing, running, completed, failed or interrupted (also if its process was killed)."""
    found = read_state(run_dir).get("status")
    if found is None:
        return _status_without_state(run_dir)
    return "interrupted" if found == "running" and not is_locked(run_dir) else found


def _status_without_state(run_dir: Path) -> str:
    """The status inferred from a run's other files if state.json is missing or damaged."""
    if os.path.lexists(run_dir / manifest.NAME) and not manifest.problems(run_dir, ROWS):
        return "completed"
    if is_locked(run_dir):
        return "running"
    if not any(map(_mode, (run_dir / name for name in ("metrics", *manifest.FILES)))):
        return "missing"
    return "failed" if _mode(run_dir / ERROR) else "interrupted"


def write_state(run_dir: Path, **facts: object) -> None:
    """Replace state.json atomically.

    Raises: StorageError if it cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({**facts, "pid": os.getpid(), "updated": now}, indent=1)
    with atomic.storing(run_dir):
        atomic.write_text(run_dir / "state.json", text + "\n", fsync=True)


def last_attempt(run_dir: Path) -> int:
    """The highest attempt number in any of the run's files; 0 for a new run."""
    from rgpo.runtime import metrics

    found = [metrics.last_attempt(run_dir, joined=not manifest.problems(run_dir, ROWS))]
    for name in ("state.json", "provenance.json", manifest.NAME):
        try:
            found.append(reader.read_json(run_dir / name, _Attempt).get("attempt", 0))
        except reader.Unreadable:
            continue
    return max(x for x in (0, *found) if 0 <= x < MAX_ATTEMPT)


def settle(run_dir: Path) -> bool:
    """True if the run is complete according to its manifest or, for a run of an earlier version, its state.

    The caller must hold the lock. Corrects state.json and, if the run is complete, removes what a killed process left behind.

    Raises: StorageError if state.json is wrong and cannot be written.
    """
    from rgpo.runtime import metrics

    state, problems = read_state(run_dir), manifest.problems(run_dir, ROWS)
    claimed = state.get("status") == "completed"
    counts: dict[str, object] = {key: state.get(key, 0) for key in ("attempt", "iteration", "num_iterations")}
    try:
        done = manifest.read(run_dir)
    except reader.Missing:
        if claimed and not metrics.has_rows(run_dir, state.get("num_iterations", 1)):
            problems = ["metrics.parquet cannot be read or has not all rows"]
        complete = claimed and not problems
    except reader.Unreadable:
        complete = False  # problems already includes the manifest
    else:
        complete = not problems
        counts = {"attempt": done["attempt"], "iteration": done["num_iterations"], "num_iterations": done["num_iterations"]}
        if complete:
            if not claimed or not counts.items() <= state.items():
                write_state(run_dir, status="completed", **counts, reason=None)
            tidy(run_dir)
    if claimed and not complete:
        write_state(run_dir, status="interrupted", **counts, reason="; ".join(problems))
    return complete


def traceback_of(error: BaseException) -> str:
    """The redacted traceback of an error; for an EnvironmentFault, that of the environment's own error if there is one."""
    cause = error.__cause__ if isinstance(error, EnvironmentFault) else None
    lines = redact("".join(traceback.format_exception(cause or error))).split("\n")
    return "\n".join(escaped(line) for line in lines)


def record_fault(run_dir: Path, fault: BaseException) -> str:
    """Write the traceback of a run that cannot start; returns a clause with the file's path, or "" if it was not written."""
    path = run_dir / ERROR
    try:
        if manifest.problems(run_dir, ROWS) or not os.path.lexists(run_dir / manifest.NAME):  # not in a finished run
            atomic.make_folder(run_dir)
            atomic.write_text(path, traceback_of(fault))
            return f" (traceback in {path})"
    except OSError:
        pass
    return ""


def tidy(run_dir: Path) -> None:
    """Clean up a complete run: remove part files, the traceback of an earlier attempt and partially written files.

    Raises: StorageError if a file cannot be removed.
    """
    from rgpo.runtime import metrics

    with atomic.storing(run_dir):
        metrics.remove_parts(run_dir)
        atomic.remove([run_dir / ERROR])
        atomic.remove_temporary(run_dir)


def reopen(run_dir: Path) -> list[str]:
    """Prepare a folder for another attempt; returns one clause per damaged file, which is set aside.

    Raises: StorageError if a file cannot be renamed or removed.
    """
    clauses = []
    with atomic.storing(run_dir):
        atomic.remove_temporary(run_dir)
        found = manifest.damage(run_dir, ROWS)
        names = (*manifest.FILES, manifest.NAME, "state.json", ERROR)
        found |= {name: f"{name} is a folder" for name in names if stat.S_ISDIR(_mode(run_dir / name))}
        for name, why in found.items():
            moved = atomic.set_aside(run_dir / name, run_dir, "damaged").name if _mode(run_dir / name) else ""
            clauses.append(f"{why}; it was renamed to {moved}" if moved else why)
        atomic.remove([run_dir / manifest.NAME])  # from an earlier attempt
        atomic.sync_folder(run_dir)
    return clauses


@contextmanager
def lock(run_dir: Path) -> Iterator[bool]:
    """Create the run's folder and lock it; yields False if another process holds the lock.

    Raises: ConfigError if the folder cannot be written.
    """
    path = run_dir / LOCK
    with ExitStack() as stack:
        try:
            atomic.make_folder(run_dir)
            mine = stack.enter_context(atomic.locked(path, wait=False))
        except OSError as error:
            if _mode(path) and not stat.S_ISREG(_mode(path)):
                raise ConfigError(f"{path}: is not a regular file; remove it.") from error
            raise ConfigError(f"results_dir: cannot write {run_dir} ({error.strerror}); choose another results_dir.") from error
        yield mine


def holder(run_dir: Path) -> str:
    """A clause about the process that is running a run: when it started and its last checkpoint."""
    state = read_state(run_dir)
    known = []
    try:
        started = datetime.fromisoformat(reader.read_json(run_dir / "provenance.json", _Start)["started"])
        known.append(f"started at {started.astimezone():%H:%M on %Y-%m-%d}")
    except (reader.Unreadable, ValueError):  # it has only just started
        pass
    if "iteration" in state:
        size = f" of {state['num_iterations']:,}" if "num_iterations" in state else ""
        known.append(f"iteration {state['iteration']:,}{size} at its last checkpoint")
    who = f"process {state['pid']}" if "pid" in state else "another process"
    return f"{who} is running it" + (f" ({'; '.join(known)})" if known else "")


def is_locked(run_dir: Path) -> bool:
    """True if a live process holds the run's lock."""
    return atomic.is_locked(run_dir / LOCK)


def _mode(path: Path) -> int:
    """A file's mode bits; 0 if it does not exist."""
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def lock_file(run_dir: Path) -> os.stat_result | None:
    """The status of the folder's current lock file; None if there is none."""
    try:
        return os.lstat(run_dir / LOCK)
    except OSError:
        return None


def require_same(run_dir: Path, held: os.stat_result | None) -> None:
    """Raises: StorageError if the folder locked by this process was deleted, emptied or replaced."""
    found = lock_file(run_dir)
    if not run_dir.is_dir() or (held and not (found and os.path.samestat(held, found))):
        what = "was deleted or moved while the run was using it"
        raise StorageError(f"results_dir: {run_dir} {what}; repeat the command to start it again.")


def _require_own(run_dir: Path) -> None:
    """Raises: ConfigError if the folder holds another run's files, so that its name does not end in their config hash."""
    named = re.search("-s[0-9]+-([0-9a-f]{8})$", run_dir.name)
    try:
        origin = reader.read_json(run_dir / "provenance.json", _Origin)
    except reader.Unreadable:  # the next attempt will rewrite it
        return
    if named and origin.get("config_hash", named[1]) != named[1]:
        holds = f"holds the files of the run {reader.printable(origin.get('run_id', origin['config_hash']), 200)}"
        raise ConfigError(f"results_dir: {run_dir} {holds}; move the folder away, or use force=true, which moves it aside.")


def move_aside(run_dir: Path) -> Path | None:
    """Rename an existing run folder to .<name>.old<k>; returns its new path."""
    if not run_dir.exists():
        return None
    k = 1
    while os.path.lexists(target := run_dir.with_name(f".{run_dir.name}.old{k}")):
        k += 1
    atomic.rename(run_dir, target)
    atomic.sync_folder(run_dir.parent)
    return target


def prepare(run_dir: Path, force: bool) -> None:
    """Create the run's folder and correct its state; with force, move an existing run aside unless it is running.

    Raises: ConfigError if the folder cannot be written or moved, or holds another run.
    """
    with lock(run_dir) as mine:
        if mine and force and any(file.name != LOCK for file in run_dir.iterdir()):  # locking has just created the folder
            try:
                aside = move_aside(run_dir)
            except OSError as error:
                raise ConfigError(f"force=true: cannot move {run_dir} aside ({error.strerror}).") from error
            print(f"moved the earlier run to {aside}")
        elif mine:
            _require_own(run_dir)
            try:
                settle(run_dir)
            except StorageError as error:
                raise ConfigError(str(error)) from error
