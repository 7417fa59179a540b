"""Runs that were repeated with later code and came out equal: results_dir/repeated.json, which `verify RUN record=` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from rgpo import atomic
from rgpo.errors import ConfigError
from rgpo.report.read.run import Problem
from rgpo.runtime import reader
from rgpo.runtime.reader import Missing, Unreadable, printable

NAME, REMEDY = "repeated.json", "remove the file, or write it again with verify RUN record="
FOUND, KEYS = ("equal", "equal to rounding"), {"code", "commit", "found"}


class Repeated(TypedDict):
    """A repetition whose columns, but for those that read a clock, are equal to the stored ones."""

    code: str  # digest of the code that determines the run's numbers, with which it was repeated
    commit: str
    found: str  # equal, or equal to rounding


class _File(TypedDict):
    runs: dict[str, Repeated]  # experiment/folder -> its last repetition


def read_repeated(results_dir: Path) -> tuple[Mapping[str, Repeated], list[Problem]]:
    """experiment/folder -> the repetition of a run; a damaged file or entry is a problem."""
    try:
        found, odd = _read(results_dir / NAME)
    except Missing:
        return {}, []
    except Unreadable as error:
        return {}, [Problem(NAME, f"{error}; repetitions are left out; {REMEDY}")]
    return found, [Problem(NAME, f"the entry of {', '.join(odd)} is no repetition; it is left out; {REMEDY}")] if odd else []


def _read(path: Path) -> tuple[dict[str, Repeated], list[str]]:
    """The entries that are whole, and the names of the others.

    Raises: Missing or Unreadable.
    """
    entries = reader.read_json(path, _File).get("runs", {})
    whole = {name: entry for name, entry in entries.items() if entry.keys() == KEYS and entry["found"] in FOUND}
    return whole, [printable(name, 100) for name in entries.keys() - whole.keys()]


def record(path: Path, where: str, repeated: Repeated) -> None:
    """Add a repetition to the file, or replace that of the same run.

    Raises: ConfigError if the file is damaged or cannot be written.
    """
    try:
        runs = _read(path)[0] if path.exists() else {}
        atomic.write_text(path, json.dumps({"runs": dict(sorted((runs | {where: repeated}).items()))}, indent=1) + "\n")
    except (Unreadable, OSError) as error:
        raise ConfigError(f"record={path}: cannot be written ({error}); give another file") from error
