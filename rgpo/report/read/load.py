"""Load finished and running runs from disk (config, state, provenance, reduced metrics), with a problem for each unreadable one.

results_dir/<experiment>/<task>-<algo>-s<seed>-<hash8>/
    config.yaml  provenance.json  state.json  metrics.parquet | metrics/part-<attempt>-<n>.parquet  [samples.parquet]

Configs and columns of earlier versions are read under their current names (rgpo.runtime.former).
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TypeGuard, TypeVar, cast

import numpy as np

from rgpo.errors import ConfigError, close_matches, shell_word
from rgpo.report.read import rows
from rgpo.report.read.columns import COLUMNS, SCORES
from rgpo.report.read.reduce import Detail, reduce
from rgpo.report.read.run import Problem, Provenance, Run
from rgpo.report.read.workers import Map
from rgpo.runtime import manifest, reader
from rgpo.runtime.former import canonical_config, flat_config
from rgpo.runtime.own_metrics import glossary
from rgpo.runtime.provenance import LIBRARIES, GateCurve
from rgpo.runtime.provenance import Provenance as Stored
from rgpo.runtime.reader import Missing, Unreadable, printable
from rgpo.runtime.run_folder import ERROR, RunState, is_locked
from rgpo.runtime.schema import GLOSSARY, Metric
from rgpo.runtime.task_name import task_name

RUN_FOLDER = re.compile(r".+-s\d+-[0-9a-f]{8}")
STATUSES = ("running", "completed", "interrupted", "failed")
MAX_POINTS = 400  # points per curve
CHUNK = 8  # runs read by a process at a time
CHECKED = ("config.yaml", "provenance.json", "metrics.parquet")  # files whose digests are checked; samples only when shown
MAX_NAME, MAX_COMMAND = 100, 2000  # most characters in a name, and in a command
_Typed = TypeVar("_Typed")


def experiments(results_dir: Path, name: str | None, typed: str = "") -> list[str]:
    """Names of the experiments with run folders.

    Raises: ConfigError, whose message starts with `typed`, if there are none, or none with the given name.
    """
    typed, remedy = typed or f"results_dir={results_dir}", "run rgpo-run first, or give another folder"
    try:
        if not results_dir.is_dir():
            raise ConfigError(f"{typed}: {'it is a file' if results_dir.exists() else 'there is no such folder'}; {remedy}")
        found = sorted(d.name for d in results_dir.iterdir() if _visible_folder(d) and _may_have_runs(d))
    except OSError as error:
        raise ConfigError(f"{typed}: it cannot be read ({error.strerror}); give another folder") from None
    if not found and run_folders(results_dir):
        above, folder = os.path.normpath(results_dir / ".."), results_dir.resolve().name
        remedy = f"give the folder above, {shell_word(above)}, and experiment={shell_word(folder)}"
        raise ConfigError(f"{typed}: it is one experiment; {remedy}")
    if not found:
        raise ConfigError(f"{typed}: it contains no runs; {remedy}")
    if name is None:
        return found
    if name not in found:
        near = close_matches(name, found) or f" There are {printable(', '.join(found))}."
        raise ConfigError(f"experiment={name}: {results_dir} has no runs of that name.{near}")
    return [name]


def run_folders(experiment_dir: Path) -> list[Path]:
    """Folders named <task>-<algo>-s<seed>-<hash8>, sorted; others, such as those set aside by force=true, are ignored.

    Raises: Unreadable if the experiment's folder cannot be read.
    """
    try:
        return sorted(d for d in experiment_dir.iterdir() if RUN_FOLDER.fullmatch(d.name) and _visible_folder(d))
    except OSError as error:
        raise Unreadable.file(experiment_dir, str(error.strerror)) from None


def queued(folder: Path) -> bool:
    """True for the folder of a run without rows, because it has not started or a live process has just started it.

    A run that has not started has at most a lock and an error file.
    """
    try:
        empty = all(file.name.startswith(".") or file.name == ERROR for file in folder.iterdir())
        return empty or (not rows.files(folder) and is_locked(folder))
    except OSError:
        return False


def read_runs(
    experiment_dir: Path,
    columns: Collection[str],
    final_fraction: float,
    thresholds: Collection[float],
    distribute: Map,
    numbers: Collection[tuple[str, str]] = (),
    num_points: int = MAX_POINTS,
    paths: Collection[str] = (),
) -> tuple[list[Run], list[Problem]]:
    """Read an experiment's runs with the given metric columns; unreadable runs become problems, queued runs are skipped.

    numbers, paths: additional (column, statistic) and columns to keep for each run; num_points: most points per curve.

    Raises: Unreadable if the experiment's folder cannot be read.
    """
    folders = [folder for folder in run_folders(experiment_dir) if not queued(folder)]
    detail = Detail(final_fraction, tuple(thresholds), num_points, tuple(numbers), tuple(paths))
    read = partial(_read_or_report, columns={*columns, *COLUMNS}, detail=detail)
    runs, problems = [], []
    for run, found in distribute(read, folders, CHUNK):
        runs += [run] if run else []
        problems += found
    return runs, problems


def read_run(folder: Path, columns: Collection[str], detail: Detail) -> tuple[Run, list[Problem]]:
    """Read one run, and the problems that do not prevent its use.

    Raises: Unreadable if the run cannot be used.
    """
    where = f"{folder.parent.name}/{folder.name}"
    damaged = manifest.problems(folder, CHECKED)
    if damaged:
        raise Unreadable("; ".join(damaged))
    written = reader.read_yaml(folder / "config.yaml")
    config = canonical_config(written)
    state, problems = _read(folder / "state.json", RunState, where, "its status is unknown")
    stored, more = _read(folder / "provenance.json", Stored, where, "its commit and versions are unknown")
    provenance = _provenance(stored)
    metrics, undeclared = _declared(config, where)
    problems += more + undeclared
    again = (provenance.command or "rgpo-run ...").removesuffix(" force=true")
    remedy = f"; rerun it with `{again} force=true`" if state.get("status") == "completed" else ""
    try:
        found = rows.read(folder, {*columns, *metrics})
    except Unreadable as error:
        if state.get("status") == "failed" and not rows.files(folder):
            raise Unreadable(f"it failed before its first row: {printable(state.get('reason') or 'unknown reason')}") from None
        raise Unreadable(f"{error}{remedy}") from None
    rows.require_own(found, written)
    problems += [Problem(where, problem) for problem in found.problems]
    planned = _planned(folder)
    num_iterations = planned or state.get("num_iterations") or config.get("num_iterations")
    if type(num_iterations) is not int:
        why = problems[0].why if problems else "state.json has no num_iterations"
        raise Unreadable(f"{why}, and config.yaml has none either; rerun its rgpo-run command with force=true")
    iteration = found.columns["iteration"]
    if not 1 <= iteration.min() <= iteration.max() <= num_iterations:
        raise Unreadable(f"its rows are of iterations {iteration.min():g} to {iteration.max():g}, but it has {num_iterations}")
    attempt, last = found.columns["attempt"].max(), state.get("attempt", math.inf)
    if attempt > last:
        raise Unreadable(f"its rows are of {attempt:g} attempts, but state.json has {last}{remedy}")
    flat, scale = flat_config(config), found.words.get("scale", "none")
    if not all(map(_is_name, flat)):
        raise Unreadable(f"config.yaml has a key of more than {MAX_NAME} characters, or with invisible ones")
    task, algo, seed = (flat.get(key) for key in ("choices.task", "choices.algo", "seed"))
    if not (_is_name(task) and _is_name(algo) and _is_name(scale) and type(seed) is int):
        raise Unreadable("config.yaml has no usable choices.task, choices.algo and seed")
    run = Run(
        experiment=folder.parent.name,
        folder=folder,
        task=printable(task_name(flat, scale), MAX_NAME),
        scale=scale,
        algo=algo,
        seed=seed,
        config=flat,
        metrics=metrics,
        provenance=provenance,
        status="completed" if planned else str(state["status"]) if state.get("status") in STATUSES else "unknown",
        reason="" if planned else printable(state.get("reason") or ""),
        num_iterations=num_iterations,
        reached=len(iteration),
        reduced=reduce(found.columns, detail, metrics),
    )
    steps, wanted = found.columns["env_steps"].max(), run.planned_steps or 0
    if run.complete and steps < wanted:
        raise Unreadable(f"its rows end after {steps:,.0f} of the {wanted:,} steps of its configuration{remedy}")
    gap = int(iteration.max()) - len(iteration)
    if gap and run.status != "completed":
        problems.append(Problem(where, f"{gap} iterations before its last one have no row"))
    return run, problems + _doubts(run, remedy)


def _planned(folder: Path) -> int:
    """The number of iterations in a finished run's manifest; 0 without a manifest."""
    try:
        return manifest.read(folder)["num_iterations"]
    except Missing:
        return 0


def _doubts(run: Run, remedy: str) -> list[Problem]:
    """Problems of a run that was read successfully."""
    problems = []
    if run.status == "completed" and not run.complete:
        lost = f"its status is completed, but {run.num_iterations - run.reached} of {run.num_iterations} iterations have no row"
        problems.append(Problem(run.where, lost + remedy))
    endless = [name for name in SCORES if np.isinf(run.number(name, "final"))]
    return problems + [Problem(run.where, f"{name} is infinite at its end and left out of means") for name in endless]


def _read_or_report(folder: Path, columns: Collection[str], detail: Detail) -> tuple[Run | None, list[Problem]]:
    """A run and its problems; any error excludes only this run."""
    try:
        return read_run(folder, columns, detail)
    except Unreadable as error:
        why = str(error)
    except Exception as error:
        why = f"{type(error).__name__}: {printable(str(error))}"
    return None, [Problem(f"{folder.parent.name}/{folder.name}", f"{why}; the run is left out")]


def _visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _may_have_runs(path: Path) -> bool:
    try:
        return bool(run_folders(path))
    except Unreadable:  # reported later, when it is read
        return True


def _is_name(value: object) -> TypeGuard[str]:
    """True for text that can be used as a name in tables and figures."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and printable(value) == value


def _read(path: Path, kind: type[_Typed], where: str, consequence: str) -> tuple[_Typed, list[Problem]]:
    """Read a JSON file; returns an empty mapping and a problem if it does not exist.

    Raises: Unreadable if it is damaged.
    """
    try:
        return reader.read_json(path, kind), []
    except Missing as error:
        return cast(_Typed, {}), [Problem(where, f"{error}; {consequence}")]


def _declared(config: Mapping[str, object], where: str) -> tuple[dict[str, Metric], list[Problem]]:
    """Metrics that the run's own config declares."""
    try:
        known = glossary(config)
    except ConfigError as error:
        return {}, [Problem(where, f"{printable(str(error))} The metrics that it declares are left out")]
    own = {name: metric for name, metric in known.items() if name not in GLOSSARY}
    usable = {name: metric for name, metric in own.items() if _is_name(name) and _is_name(metric.unit)}
    return usable, [
        Problem(where, f"metrics.{printable(name, MAX_NAME)}: its name or unit is too long or has invisible characters")
        for name in own.keys() - usable.keys()
    ]


def _provenance(stored: Mapping[str, object]) -> Provenance:
    versions, machine = _mapping(stored.get("versions")), _mapping(stored.get("host"))
    host = f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores, {machine.get('platform', '?')}"
    command = str(stored.get("command") or "")
    return Provenance(
        commit=printable(str(stored.get("commit") or "")),
        dirty=bool(stored.get("dirty")),
        code=printable(str(stored.get("code") or ""), MAX_NAME),
        versions=printable(", ".join(f"{name} {v}" for name, v in versions.items())) or "unknown",
        libraries={name: str(versions[name]) for name in LIBRARIES if name in versions},
        host=printable(f"{host}; threads per run: {stored.get('num_threads', '?')}"),
        started=printable(str(stored.get("started") or "")),
        command=_typed_again(command) if printable(command, MAX_COMMAND) == command else "",
        attempt=cast(int, stored.get("attempt", 1)),
        gate=str(_mapping(stored.get("algorithm")).get("gate", "")),
        gate_curve=_gate_curve(stored.get("gate_curve")),
    )


def _gate_curve(stored: object) -> GateCurve | None:
    """The curve of a run's gate, or None if it is incomplete."""
    curve = _mapping(stored)
    if not curve.keys() >= GateCurve.__annotations__.keys():
        return None
    found = cast(GateCurve, curve)
    sides = [*found["gate_value"], *found["weight"]]
    whole = len(found["gate_value"]) == len(found["weight"]) == 2 and {len(side) for side in sides} == {len(found["log_ratio"])}
    return found if whole and found["log_ratio"] else None


def _typed_again(command: str) -> str:
    """Requote every argument of an rgpo-run command, so that it is safe to paste in a shell; "" for any other text."""
    try:
        words = shlex.split(command) if "$'" not in command else []
    except ValueError:
        words = []
    return " ".join(map(shell_word, words)) if words[:1] == ["rgpo-run"] and "`" not in command else ""


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
