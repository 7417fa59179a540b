"""Runs from disk: config, state, provenance and the reduced metrics of finished and running runs, and a problem for the rest.

results_dir/<experiment>/<task>-<algo>-s<seed>-<hash8>/
    config.yaml  provenance.json  state.json  metrics.parquet | metrics/part-<attempt>-<n>.parquet  [samples.parquet]

Configs and columns of earlier versions are read by their present names (rgpo.runtime.schema).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from rgpo.errors import ConfigError, close_matches
from rgpo.report.read import rows
from rgpo.report.read.columns import COLUMNS, SCORES
from rgpo.report.read.reduce import Detail, reduce
from rgpo.report.read.rows import Unreadable, reason
from rgpo.report.read.run import Problem, Provenance, Run
from rgpo.report.read.workers import Map
from rgpo.runtime.schema import GLOSSARY, Metric, canonical_config, glossary

RUN_FOLDER = re.compile(r".+-s\d+-[0-9a-f]{8}")
STATUSES = ("running", "completed", "interrupted", "failed")
MIN_POINTS, MAX_POINTS = 20, 400  # of a curve
DRAWN_POINTS = 20_000  # of all runs' curves of one metric
CHUNK = 8  # runs that a process reads at a time
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def experiments(results_dir: Path, name: str | None, typed: str = "") -> list[str]:
    """Names of the experiments that have run folders.

    Raises: ConfigError, beginning with `typed`, if there is none, or none of the given name.
    """
    typed, remedy = typed or f"results_dir={results_dir}", "run rgpo-run first, or give another folder"
    if not results_dir.is_dir():
        raise ConfigError(f"{typed}: {'it is a file' if results_dir.exists() else 'there is no such folder'}; {remedy}")
    found = sorted(d.name for d in results_dir.iterdir() if _visible_folder(d) and run_folders(d))
    if not found and run_folders(results_dir):
        above, folder = os.path.normpath(results_dir / ".."), results_dir.resolve().name
        raise ConfigError(f"{typed}: it is one experiment; give the folder above, {above}, and experiment={folder}")
    if not found:
        raise ConfigError(f"{typed}: it contains no runs; {remedy}")
    if name is None:
        return found
    if name not in found:
        near = close_matches(name, found) or f" There are {', '.join(found)}."
        raise ConfigError(f"experiment={name}: {results_dir} has no runs of that name.{near}")
    return [name]


def run_folders(experiment_dir: Path) -> list[Path]:
    """Folders named <task>-<algo>-s<seed>-<hash8>, sorted; others (set aside by force=true) are not read."""
    return sorted(d for d in experiment_dir.iterdir() if RUN_FOLDER.fullmatch(d.name) and _visible_folder(d))


def read_runs(
    experiment_dir: Path, columns: Collection[str], final_fraction: float, thresholds: Collection[float], distribute: Map
) -> tuple[list[Run], list[Problem]]:
    """Read every run of an experiment with the given metric columns; unreadable runs become problems."""
    folders = run_folders(experiment_dir)
    num_points = min(MAX_POINTS, max(MIN_POINTS, DRAWN_POINTS // max(len(folders), 1)))
    detail = Detail(final_fraction, tuple(thresholds), num_points)
    read = partial(_read_or_report, columns={*columns, *COLUMNS}, detail=detail)
    runs, problems = [], []
    for run, found in distribute(read, folders, CHUNK):
        runs += [run] if run else []
        problems += found
    return runs, problems


def read_run(folder: Path, columns: Collection[str], detail: Detail) -> tuple[Run, list[Problem]]:
    """Read one run, with the problems that do not prevent its use.

    Raises: Unreadable if the run cannot be used.
    """
    where = f"{folder.parent.name}/{folder.name}"
    config = canonical_config(read_config(folder / "config.yaml"))
    state, problems = _read_json(folder / "state.json", where, "its status is unknown")
    stored, more = _read_json(folder / "provenance.json", where, "its commit and versions are unknown")
    provenance = _provenance(stored)
    metrics, undeclared = _declared(config, where)
    problems += more + undeclared
    again = (provenance.command or "rgpo-run ...").removesuffix(" force=true")
    remedy = f"; rerun it with `{again} force=true`" if state.get("status") == "completed" else ""
    try:
        found = rows.read(folder, {*columns, *metrics})
    except Unreadable as error:
        raise Unreadable(f"{error}{remedy}") from None
    problems += [Problem(where, problem) for problem in found.problems]
    num_iterations = state.get("num_iterations") or config.get("num_iterations")
    if not isinstance(num_iterations, int):
        why = problems[0].why if problems else "state.json has no num_iterations"
        raise Unreadable(f"{why}, and config.yaml has none either; rerun its rgpo-run command with force=true")
    flat, scale = _flatten(config), found.words.get("scale", "none")
    task, algo, seed = (flat.get(key) for key in ("choices.task", "choices.algo", "seed"))
    if not (isinstance(task, str) and isinstance(algo, str) and isinstance(seed, int)):
        raise Unreadable("config.yaml has no usable choices.task, choices.algo and seed")
    run = Run(
        experiment=folder.parent.name,
        folder=folder,
        task=task if scale == "none" else f"{task} ({scale})",
        scale=scale,
        algo=algo,
        seed=seed,
        config=flat,
        metrics=metrics,
        provenance=provenance,
        status=str(state["status"]) if state.get("status") in STATUSES else "unknown",
        reason=str(state.get("reason") or ""),
        num_iterations=num_iterations,
        reached=len(found.columns["iteration"]),
        reduced=reduce(found.columns, detail),
    )
    return run, problems + _doubts(run, remedy)


def _doubts(run: Run, remedy: str) -> list[Problem]:
    """Problems of a run whose files could be read."""
    problems = []
    if run.status == "completed" and not run.complete:
        lost = f"its status is completed, but {run.num_iterations - run.reached} of {run.num_iterations} iterations have no row"
        problems.append(Problem(run.where, lost + remedy))
    endless = [name for name in SCORES if np.isinf(run.number(name, "final"))]
    return problems + [Problem(run.where, f"{name} is infinite at its end and left out of means") for name in endless]


def _read_or_report(folder: Path, columns: Collection[str], detail: Detail) -> tuple[Run | None, list[Problem]]:
    try:
        return read_run(folder, columns, detail)
    except Unreadable as error:
        return None, [Problem(f"{folder.parent.name}/{folder.name}", f"{error}; the run is left out")]


def _visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def read_config(path: Path) -> dict[str, object]:
    """A run's config.yaml as it was written.

    Raises: Unreadable if it is missing, damaged or not a mapping.
    """
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_YAML)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Unreadable(f"config.yaml {reason(error)}") from None
    if not isinstance(config, dict):
        raise Unreadable("config.yaml is empty or not a mapping")
    return config


def _read_json(path: Path, where: str, consequence: str) -> tuple[dict[str, object], list[Problem]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found, []
        why = "is not a mapping"
    except (OSError, ValueError) as error:
        why = reason(error)
    return {}, [Problem(where, f"{path.name} {why}; {consequence}")]


def _declared(config: Mapping[str, object], where: str) -> tuple[dict[str, Metric], list[Problem]]:
    """Metrics that the run's own config declares."""
    try:
        known = glossary(config)
    except ConfigError as error:
        return {}, [Problem(where, f"{error} The metrics that it declares are left out")]
    return {name: metric for name, metric in known.items() if name not in GLOSSARY}, []


def _provenance(stored: Mapping[str, object]) -> Provenance:
    versions, host = stored.get("versions"), stored.get("host")
    machine = host if isinstance(host, Mapping) else {}
    attempt = stored.get("attempt")
    return Provenance(
        commit=str(stored.get("commit") or ""),
        dirty=bool(stored.get("dirty")),
        versions=", ".join(f"{name} {v}" for name, v in versions.items()) if isinstance(versions, Mapping) else "unknown",
        host=f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores, {machine.get('platform', '?')}; "
        f"threads per run: {stored.get('num_threads', '?')}",
        started=str(stored.get("started") or ""),
        command=str(stored.get("command") or ""),
        attempt=attempt if isinstance(attempt, int) else 1,
    )


def _flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
