"""Runs from disk: config, state, provenance and the reduced metrics of finished and running runs; sentences for the rest.

results_dir/<experiment>/<task>-<algo>-s<seed>-<hash8>/
    config.yaml  provenance.json  state.json  metrics.parquet | metrics/part-<attempt>-<n>.parquet  [samples.parquet]
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rgpo.errors import ConfigError, close_matches
from rgpo.report.read import rows
from rgpo.report.read.reduce import COLUMNS, SCORES, Detail, Reduced, reduce
from rgpo.report.read.rows import Unreadable, reason
from rgpo.report.read.workers import Map
from rgpo.report.stats.bootstrap import Floats

RUN_FOLDER = re.compile(r".+-s\d+-[0-9a-f]{8}")
STATUSES = ("running", "completed", "interrupted", "failed")
MIN_POINTS, MAX_POINTS = 20, 400  # of a curve
DRAWN_POINTS = 20_000  # of all runs' curves of one metric
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Problem(NamedTuple):
    """Something that was left out or is not as it should be: where, and one sentence why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Outcome(NamedTuple):
    """What a command says at its end."""

    summary: str
    problems: list[Problem]


@dataclass(frozen=True)
class Run:
    """One run, reduced: curves over iterations and the numbers that tables are made of."""

    experiment: str
    folder: Path
    task: str  # with its scale in brackets where there are several: "qwen_rlhf (embedded)"
    scale: str  # embedded, smollm2, paper; none for control
    algo: str
    gate: str
    seed: int
    config: Mapping[str, Any]  # dotted key -> value
    provenance: Mapping[str, Any]
    status: str  # of state.json, or "unknown"
    reason: str | None
    num_iterations: int
    reached: int  # iterations with a row
    last_iteration: int
    env_steps: int
    reduced: Reduced

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def where(self) -> str:
        return f"{self.experiment}/{self.run_id}"

    @property
    def complete(self) -> bool:
        """Whether the run ended as planned and every iteration has its row."""
        return self.status in ("completed", "unknown") and self.reached >= self.num_iterations

    def curve(self, column: str) -> Floats:
        """Points (P,) of a column; nan where it was not measured."""
        found = self.reduced.curves.get(column)
        return found if found is not None else np.full(len(self.reduced.curves["iteration"]), np.nan)

    def number(self, column: str, statistic: str) -> float:
        """A number of the tables; nan if the column was never measured."""
        return self.reduced.numbers.get((column, statistic), float("nan"))

    def has(self, column: str) -> bool:
        """Whether the column was measured at least once."""
        found = self.reduced.lists.get(column, self.reduced.curves.get(column))
        return found is not None and bool(np.any(~np.isnan(found)))


def experiments(results_dir: Path, wanted: str | None, typed: str = "") -> list[str]:
    """Names of the experiments with run folders. ConfigError (`typed`: remedy) if there is none or not the wanted one."""
    typed, remedy = typed or f"results_dir={results_dir}", "run rgpo-run first, or give another folder"
    if not results_dir.is_dir():
        raise ConfigError(f"{typed}: {'it is a file' if results_dir.exists() else 'there is no such folder'}; {remedy}")
    found = sorted(d.name for d in results_dir.iterdir() if _visible_folder(d) and run_folders(d))
    if not found and run_folders(results_dir):
        above, name = os.path.normpath(results_dir / ".."), results_dir.resolve().name
        raise ConfigError(f"{typed}: it is one experiment; give the folder above, {above}, and experiment={name}")
    if not found:
        raise ConfigError(f"{typed}: it holds no runs; {remedy}")
    if wanted is None:
        return found
    if wanted not in found:
        near = close_matches(wanted, found) or f" There are {', '.join(found)}."
        raise ConfigError(f"experiment={wanted}: {results_dir} has no runs of that name.{near}")
    return [wanted]


def run_folders(experiment_dir: Path) -> list[Path]:
    """Folders named <task>-<algo>-s<seed>-<hash8>, sorted; others (set aside by force=true) are not read."""
    return sorted(d for d in experiment_dir.iterdir() if RUN_FOLDER.fullmatch(d.name) and _visible_folder(d))


def read_runs(
    experiment_dir: Path, columns: Collection[str], final_fraction: float, thresholds: Collection[float], distribute: Map
) -> tuple[list[Run], list[Problem]]:
    """Every readable run of an experiment with the given metric columns, and what went wrong."""
    folders = run_folders(experiment_dir)
    num_points = min(MAX_POINTS, max(MIN_POINTS, DRAWN_POINTS // max(len(folders), 1)))
    read = partial(_read_or_say, columns={*columns, *COLUMNS}, detail=Detail(final_fraction, tuple(thresholds), num_points))
    runs, problems = [], []
    for run, found in distribute(read, folders, 8):
        runs += [run] if run else []
        problems += found
    return runs, problems


def read_run(folder: Path, columns: Collection[str], detail: Detail) -> tuple[Run, list[Problem]]:
    """One run, and what is wrong with it though it can be used. Unreadable if it cannot."""
    where = f"{folder.parent.name}/{folder.name}"
    config = _flatten(_read_config(folder / "config.yaml"))
    state, problems = _read_json(folder / "state.json", where, "its status is unknown")
    provenance, more = _read_json(folder / "provenance.json", where, "its commit and versions are unknown")
    remedy = _remedy(state, provenance)
    try:
        found = rows.read(folder, columns)
    except Unreadable as error:
        raise Unreadable(f"{error}{remedy}") from None
    problems += more + [Problem(where, problem) for problem in found.problems]
    num_iterations = state.get("num_iterations") or config.get("num_iterations")
    if not isinstance(num_iterations, int):
        why = problems[0].why if problems else "state.json has no num_iterations"
        raise Unreadable(f"{why}, and config.yaml has none either; its rgpo-run command with force=true makes it again")
    status = state.get("status") if state.get("status") in STATUSES else "unknown"
    scale = found.words.get("scale", "none")
    try:
        task = str(config["choices.task"])
        run = Run(
            experiment=folder.parent.name,
            folder=folder,
            task=task if scale == "none" else f"{task} ({scale})",
            scale=scale,
            algo=str(config["choices.algo"]),
            gate=str(config["choices.gate"]),
            seed=int(config["seed"]),
            config=config,
            provenance=provenance,
            status=str(status),
            reason=state.get("reason"),
            num_iterations=num_iterations,
            reached=len(found.columns["iteration"]),
            last_iteration=int(found.columns["iteration"][-1]),
            env_steps=int(found.columns["env_steps"][-1]),
            reduced=reduce(found.columns, detail),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"config.yaml lacks a usable {error.args[0]}") from None
    if run.status == "completed" and not run.complete:
        lost = f"says completed but {run.num_iterations - run.reached} of {run.num_iterations} iterations have no row"
        problems.append(Problem(where, lost + remedy))
    endless = [name for name in SCORES if np.isinf(run.reduced.numbers.get((name, "final"), 0.0))]
    problems += [Problem(where, f"{name} is infinite at its end; it counts in no mean of it") for name in endless]
    return run, problems


def _read_or_say(folder: Path, columns: Collection[str], detail: Detail) -> tuple[Run | None, list[Problem]]:
    try:
        return read_run(folder, columns, detail)
    except Unreadable as error:
        return None, [Problem(f"{folder.parent.name}/{folder.name}", f"{error}; the run is left out")]


def _remedy(state: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """How a run that says completed, and so would not go on, is made again where its rows are lost."""
    command = str(provenance.get("command", "rgpo-run ..."))
    return f"; `{command.removesuffix(' force=true')} force=true` makes it again" if state.get("status") == "completed" else ""


def _visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Unreadable(f"config.yaml {reason(error)}") from None
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
        why = reason(error)
    return {}, [Problem(where, f"{path.name} {why}; {consequence}")]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
