"""Runs that gave equal results when repeated with later code, from results_dir/repeated.json (see `verify RUN record=`)."""

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
    """A repetition whose columns, except for clock measurements, equal the stored ones."""

    code: str  # digest of the number-determining code used for the repetition
    commit: str
    found: str  # equal, or equal to rounding


class _File(TypedDict):
    runs: dict[str, Repeated]  # experiment/folder -> last repetition


def read_repeated(results_dir: Path) -> tuple[Mapping[str, Repeated], list[Problem]]:
    """Read experiment/folder -> repetition; a damaged file or entry becomes a problem."""
    try:
        found, odd = _read(results_dir / NAME)
    except Missing:
        return {}, []
    except Unreadable as error:
        return {}, [Problem(NAME, f"{error}; repetitions are left out; {REMEDY}")]
    return found, [Problem(NAME, f"the entry of {', '.join(odd)} is no repetition; it is left out; {REMEDY}")] if odd else []


def _read(path: Path) -> tuple[dict[str, Repeated], list[str]]:
    """The valid entries, and the names of the others.

    Raises: Unreadable if the file is damaged; Missing if it does not exist.
    """
    entries = reader.read_json(path, _File).get("runs", {})
    whole = {name: entry for name, entry in entries.items() if entry.keys() == KEYS and entry["found"] in FOUND}
    return whole, [printable(name, 100) for name in entries.keys() - whole.keys()]


def record(path: Path, where: str, repeated: Repeated) -> None:
    """Add a repetition to the file, or replace the previous one of the same run.

    Raises: ConfigError if the file is damaged or cannot be written.
    """
    try:
        runs = _read(path)[0] if path.exists() else {}
        atomic.write_text(path, json.dumps({"runs": dict(sorted((runs | {where: repeated}).items()))}, indent=1) + "\n")
    except (Unreadable, OSError) as error:
        raise ConfigError(f"record={path}: cannot be written ({error}); give another file") from error
