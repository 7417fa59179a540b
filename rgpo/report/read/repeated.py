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
from rgpo.runtime.reader import Missing, Unreadable

NAME = "repeated.json"


class Repeated(TypedDict):
    """A repetition whose columns, but for those that read a clock, are equal to the stored ones."""

    code: str  # digest of the code that determines the run's numbers, with which it was repeated
    commit: str
    found: str  # equal, or equal to rounding


class _File(TypedDict):
    runs: dict[str, Repeated]  # experiment/folder -> its last repetition


def read_repeated(results_dir: Path) -> tuple[Mapping[str, Repeated], list[Problem]]:
    """experiment/folder -> the repetition of a run; a damaged file is a problem."""
    try:
        return reader.read_json(results_dir / NAME, _File)["runs"], []
    except Missing:
        return {}, []
    except (Unreadable, KeyError) as error:
        return {}, [
            Problem(NAME, f"{error}; repetitions are left out; remove the file, or write it again with verify RUN record=")
        ]


def record(path: Path, where: str, repeated: Repeated) -> None:
    """Add a repetition to the file, or replace that of the same run.

    Raises: ConfigError if the file is damaged or cannot be written.
    """
    try:
        runs = dict(reader.read_json(path, _File).get("runs", {})) if path.exists() else {}
        atomic.write_text(path, json.dumps({"runs": dict(sorted((runs | {where: repeated}).items()))}, indent=1) + "\n")
    except (Unreadable, OSError) as error:
        raise ConfigError(f"record={path}: cannot be written ({error}); give another file") from error
