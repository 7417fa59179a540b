"""Runs from disk: config, state, provenance, metrics of finished and running runs; a sentence for what is unreadable.

results_dir/<experiment>/<task>-<algo>-s<seed>-<hash8>/
    config.yaml  provenance.json  state.json  metrics.parquet | metrics/part-<attempt>-<n>.parquet
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rgpo.errors import ConfigError, close_matches
from rgpo.report.stats import Floats
from rgpo.schema import is_list

RUN_FOLDER = re.compile(r".+-s\d+-[0-9a-f]{8}")
INDEX_COLUMNS = ("attempt", "iteration", "env_steps")
STATUSES = ("running", "completed", "interrupted", "failed")
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Problem(NamedTuple):
    """Something that was left out or is not as it should be: where, and one sentence why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Unreadable(Exception):
    """A run that cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Run:
    """One run: rows sorted by iteration, one row an iteration."""

    experiment: str
    folder: Path
    task: str
    algo: str
    gate: str
    seed: int
    config: Mapping[str, Any]  # dotted key -> value
    provenance: Mapping[str, Any]
    status: str  # of state.json, or "unknown"
    reason: str | None
    num_iterations: int
    columns: Mapping[str, Floats]  # (I,), or (I, K) under epoch/; only the columns that the files have

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def reached(self) -> int:
        """Number of iterations with a row."""
        return len(self.columns["iteration"])

    @property
    def complete(self) -> bool:
        """Whether the run ended as planned and every iteration has its row."""
        return self.status in ("completed", "unknown") and self.reached >= self.num_iterations

    def has(self, column: str) -> bool:
        """Whether the column was measured at least once."""
        return column in self.columns and bool(np.any(~np.isnan(self.columns[column])))


def experiments(results_dir: Path, wanted: str | None) -> list[str]:
    """Names of the experiments with run folders. ConfigError if there is none or not the wanted one."""
    if not results_dir.is_dir():
        raise ConfigError(f"results_dir={results_dir}: there is no such folder; run rgpo-run first, or give another results_dir")
    found = sorted(d.name for d in results_dir.iterdir() if _visible_folder(d) and run_folders(d))
    if not found:
        raise ConfigError(f"results_dir={results_dir}: it holds no runs; run rgpo-run first, or give another results_dir")
    if wanted is None:
        return found
    if wanted not in found:
        near = close_matches(wanted, found) or f" There are {', '.join(found)}."
        raise ConfigError(f"experiment={wanted}: {results_dir} has no runs of that name.{near}")
    return [wanted]


def run_folders(experiment_dir: Path) -> list[Path]:
    """Folders named <task>-<algo>-s<seed>-<hash8>, sorted; others (set aside by force=true) are not read."""
    return sorted(d for d in experiment_dir.iterdir() if _visible_folder(d) and RUN_FOLDER.fullmatch(d.name))


def read_runs(experiment_dir: Path, columns: Collection[str]) -> tuple[list[Run], list[Problem]]:
    """Every readable run of an experiment with the given metric columns, and what went wrong."""
    runs, problems = [], []
    for folder in run_folders(experiment_dir):
        try:
            run, found = read_run(folder, columns)
            runs.append(run)
            problems += found
        except Unreadable as error:
            problems.append(Problem(f"{experiment_dir.name}/{folder.name}", f"{error}; the run is left out"))
    return runs, problems


def read_run(folder: Path, columns: Collection[str]) -> tuple[Run, list[Problem]]:
    """One run, and what is wrong with it though it can be used. Unreadable if it cannot."""
    where = f"{folder.parent.name}/{folder.name}"
    config = _flatten(_read_config(folder / "config.yaml"))
    state, problems = _read_json(folder / "state.json", where, "its status is unknown")
    provenance, more = _read_json(folder / "provenance.json", where, "its commit and versions are unknown")
    problems += more
    rows, more = _read_metrics(folder, where, columns)
    problems += more
    num_iterations = state.get("num_iterations") or config.get("num_iterations")
    if not isinstance(num_iterations, int):
        raise Unreadable("neither state.json nor config.yaml gives num_iterations")
    status = state.get("status") if state.get("status") in STATUSES else "unknown"
    try:
        run = Run(
            experiment=folder.parent.name,
            folder=folder,
            task=str(config["choices.task"]),
            algo=str(config["choices.algo"]),
            gate=str(config["choices.gate"]),
            seed=int(config["seed"]),
            config=config,
            provenance=provenance,
            status=str(status),
            reason=state.get("reason"),
            num_iterations=num_iterations,
            columns=rows,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"config.yaml lacks a usable {error.args[0]}") from None
    if run.status == "completed" and not run.complete:
        lost = f"says completed but {run.num_iterations - run.reached} of {run.num_iterations} iterations have no row"
        problems.append(Problem(where, lost))
    return run, problems


def _visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Unreadable(f"config.yaml {_reason(error)}") from None
    if not isinstance(config, dict):
        raise Unreadable("config.yaml is empty or no mapping")
    return config


def _read_json(path: Path, where: str, consequence: str) -> tuple[dict[str, Any], list[Problem]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found, []
        why = "is no mapping"
    except (OSError, ValueError) as error:
        why = _reason(error)
    return {}, [Problem(where, f"{path.name} {why}; {consequence}")]


def _read_metrics(folder: Path, where: str, columns: Collection[str]) -> tuple[dict[str, Floats], list[Problem]]:
    """Rows of metrics.parquet and of the parts; where iterations overlap the highest attempt wins."""
    wanted = [*INDEX_COLUMNS, *sorted(set(columns) - set(INDEX_COLUMNS))]
    for final in (False, True):  # a second look if the runner joined the parts between listing and reading
        files = [folder / "metrics.parquet"] if (folder / "metrics.parquet").exists() else []
        files += sorted(p for p in (folder / "metrics").glob("part-*.parquet") if not p.name.startswith("."))
        tables, problems, vanished = [], [], False
        for path in files:
            try:
                tables.append(_read_parquet(path, wanted))
            except FileNotFoundError:
                vanished = True
            except (pa.ArrowException, OSError, KeyError) as error:
                name = path.relative_to(folder)
                problems.append(Problem(where, f"{name} {_reason(error)}; its rows are left out"))
        if final or not vanished:
            break
    tables = [table for table in tables if len(table["iteration"])]
    if not tables:
        raise Unreadable("; ".join(problem.why for problem in problems) or "it has no metrics yet")
    joined = {name: _stack([t.get(name) for t in tables], [len(t["iteration"]) for t in tables]) for name in wanted}
    order = np.lexsort((joined["attempt"], joined["iteration"]))
    iteration = joined["iteration"][order]
    last = np.append(iteration[1:] != iteration[:-1], True)
    present = {name for table in tables for name in table}
    return {name: joined[name][order[last]] for name in wanted if name in present}, problems


def _read_parquet(path: Path, wanted: Collection[str]) -> dict[str, Floats]:
    with pq.ParquetFile(path) as file:
        present = [name for name in wanted if name in file.schema_arrow.names]
        missing = set(INDEX_COLUMNS) - set(present)
        if missing:
            raise KeyError(f"has no column {', '.join(sorted(missing))}")
        table = file.read(columns=present)
    return {name: _padded(table[name]) if is_list(name) else floats(table[name]) for name in present}


def floats(column: Any) -> Floats:
    """A numeric arrow column as (I,), nulls as nan; to_numpy would import pandas, half a second."""
    if column.null_count:
        return np.array(column.to_pylist(), dtype=np.float64)
    return np.concatenate([np.empty(0), *(np.from_dlpack(chunk) for chunk in column.chunks if len(chunk))])


def _padded(column: Any) -> Floats:
    """Lists of different lengths -> (I, K), nan where a list is shorter."""
    rows = [row or [] for row in column.to_pylist()]
    padded = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _stack(parts: list[Floats | None], lengths: list[int]) -> Floats:
    """Join one column of several files; nan where a file has no such column or shorter lists."""
    width = max((part.shape[1] for part in parts if part is not None and part.ndim == 2), default=0)
    shape = (sum(lengths), width) if width else (sum(lengths),)
    joined, start = np.full(shape, np.nan), 0
    for part, length in zip(parts, lengths, strict=True):
        if part is not None and part.ndim == 2:
            joined[start : start + length, : part.shape[1]] = part
        elif part is not None:
            joined[start : start + length] = part
        start += length
    return joined


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _reason(error: Exception) -> str:
    """Why a file could not be read, in half a line."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, KeyError):
        return str(error.args[0])
    return f"cannot be read ({' '.join(str(error).split())[:80].rstrip('. ')})"
