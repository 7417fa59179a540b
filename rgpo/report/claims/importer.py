"""Other people's results on disk as a file of results/external: Open RL Benchmark's csv, and exports of W&B.

    rgpo-report import td3_vs_cleanrl.csv name=td3 n=3 steps=1000000 source='Open RL Benchmark' license=MIT
    rgpo-report import runs.csv name=theirs arms=ppo:ppo_continuous_action value=charts/episodic_return steps=1000000 ...
    rgpo-report import wandb/ name=mine ...

Forms that are recognized: a csv with tasks in its first column, which has no name, and cells "mean ± sd" (openrlbenchmark.rlops);
W&B's table of runs (columns task, arm and value); W&B's chart, one column "RUN - METRIC" per run, with runs named as CleanRL
does, task__arm__seed__time; and a folder of runs with files/wandb-summary.json and files/config.yaml. Over seeds: mean, standard
deviation (n - 1) and n. A task of ours is found by its environment and version; any other keeps its own name.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import yaml

from rgpo.atomic import make_folder, write_text
from rgpo.errors import ConfigError, require
from rgpo.paths import conf_dir
from rgpo.report.claims.external import FOLDER
from rgpo.report.claims.typed import fill
from rgpo.report.stats.independent import Summary, summarize
from rgpo.runtime.reader import Unreadable, read_json, read_text, read_yaml, user_path
from rgpo.runtime.task_name import declared_options

FINAL = 0.1  # share of a chart's rows, at the end, that make a run's number
CELL = re.compile(r"\s*(-?[\d.]+(?:e[+-]?\d+)?|nan)\s*±\s*([\d.]+(?:e[+-]?\d+)?|nan)\s*", re.IGNORECASE)
Numbers = Mapping[tuple[str, str], Summary]  # (arm, task) -> over seeds


class _Logged(TypedDict, total=False):
    """wandb-summary.json: whatever a run logged."""


@dataclass(frozen=True)
class Words:
    """The words of the command, besides the file."""

    name: str
    source: str
    license: str
    steps: int | None = None
    n: int | None = None  # seeds of each number, where the file does not have them
    value: str = "charts/episodic_return"
    task: str = "env_id"
    arm: str = "exp_name"
    arms: str = ""  # ours:theirs,...
    protocol: str = ""
    differs: str = ""
    url: str = ""
    metric: str = "return/train_mean"
    results_dir: str = "results"


def import_results(file: Path, words: Words) -> str:
    """Write results_dir/external/NAME.yaml; returns a summary in one line.

    Raises: ConfigError if the file has no form that is recognized, or a word does not fit it.
    """
    require(bool(re.fullmatch(r"\w[\w.-]*", words.name)), "name", words.name, "give letters, digits, _, - and .")
    found = _folder(file, words) if file.is_dir() else _table(file, words)
    known = {key: x for key, x in found.items() if math.isfinite(x.mean)}
    if not known:
        raise ConfigError(f"import={file}: it has no number; give value= a metric that it holds.")
    ours = {part: name for name, _, part in (pair.partition(":") for pair in words.arms.split(",")) if part}
    arms: dict[str, dict[str, dict[str, float | int]]] = {}
    for (theirs, environment), x in known.items():
        arm = next((name for part, name in ours.items() if part in theirs), re.sub(r"\W+", "_", theirs).strip("_"))
        place = arms.setdefault(arm, {})
        task = task_of(environment)
        require(task not in place, "arms", words.arms or theirs, f"{arm} has two numbers in {task}; tell them apart with arms=.")
        spread = {} if math.isnan(x.sd) else {"sd": round(x.sd, 6)}
        place[task] = {"value": round(x.mean, 6), **spread, "n": x.n}
    facts = {key: getattr(words, key) for key in ("source", "url", "protocol", "license", "metric", "differs")}
    node = facts | ({} if words.steps is None else {"steps": words.steps}) | {"arms": arms}
    path = user_path(words.results_dir) / FOLDER / f"{words.name}.yaml"
    make_folder(path.parent)
    write_text(path, yaml.safe_dump(node, sort_keys=False, allow_unicode=True))
    return f"{path}: {len(known)} numbers of {len(arms)} arms ({', '.join(arms)})"


def task_of(environment: str) -> str:
    """Our name of an environment: hopper for Hopper-v4, hopper (v2) for another version, its own name where we have none."""
    env_id, _, version = environment.rpartition("-")
    for path in sorted((conf_dir() / "task").glob("*.yaml")):
        node = declared_options("task", path.stem)
        if env_id and node.get("task.env_id") == env_id:
            return path.stem if node.get("task.version") == version else f"{path.stem} ({version})"
        if node.get("task.env_id") == environment:
            return path.stem
    return environment


def words_of(texts: Sequence[str]) -> Words:
    """The words key=value of a command line.

    Raises: ConfigError for an unknown or missing key, or a number that is none.
    """
    names = [entry.name for entry in fields(Words)]
    given: dict[str, str | int] = {}
    for text in texts:
        key, _, value = text.partition("=")
        require(key in names, "import", text, f"give one of {', '.join(names)}, as key=value")
        number = key in ("steps", "n")
        require(not number or value.isdigit(), key, value, "give a whole number")
        given[key] = int(value) if number else value
    lacking = [key for key in ("name", "source", "license") if not given.get(key)]
    require(not lacking, "import", " ".join(lacking), "these are missing; a number without its source is of no use")
    return fill(Words, given, "")


def _table(file: Path, words: Words) -> Numbers:
    try:
        rows = list(csv.reader(io.StringIO(read_text(file))))
    except (Unreadable, csv.Error) as error:
        raise ConfigError(f"import={file}: it cannot be read ({error}); give a csv or a folder of W&B.") from error
    rows = [row for row in rows if row]
    require(len(rows) > 1, "import", file, "it has no rows; give a csv with a header")
    head, *body = rows
    if not head[0].strip() and any(CELL.fullmatch(cell) for row in body for cell in row[1:]):
        return _cells(head, body, words)
    if any(name.endswith(f" - {words.value}") for name in head):
        return _chart(file, head, body, words)
    if {words.value, words.task, words.arm} <= set(head):
        return _runs(head, body, words)
    shown = ", ".join(head[:8])
    raise ConfigError(f"import={file}: its columns ({shown}) are none that is known; name them with task=, arm= and value=.")


def _cells(head: Sequence[str], body: Sequence[Sequence[str]], words: Words) -> Numbers:
    """Open RL Benchmark's: rows are tasks, columns are arms, and seeds are not in the file."""
    if words.n is None or words.n < 1:
        raise ConfigError(f"n={words.n}: the file does not state how many seeds its numbers have; give n=.")
    found = {}
    for row in body:
        for arm, cell in zip(head[1:], row[1:], strict=False):
            if match := CELL.fullmatch(cell):
                found[arm.removesuffix(" ({})"), row[0]] = Summary(float(match[1]), float(match[2]), words.n)
    return found


def _chart(file: Path, head: Sequence[str], body: Sequence[Sequence[str]], words: Words) -> Numbers:
    """W&B's chart: a run's number is the mean of the last tenth of the rows that have one."""
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for i, name in enumerate(head):
        if not name.endswith(f" - {words.value}"):
            continue
        parts = name.removesuffix(f" - {words.value}").split("__")
        if len(parts) < 3:
            raise ConfigError(f"import={file}: the run {parts[0]} is not named task__arm__seed; export the table of runs.")
        values = np.array([float(row[i]) for row in body if i < len(row) and _is_number(row[i])])
        if values.size:
            runs[parts[1], parts[0]].append(float(values[-max(1, round(FINAL * values.size)) :].mean()))
    return {key: summarize(np.array(values)) for key, values in runs.items()}


def _runs(head: Sequence[str], body: Sequence[Sequence[str]], words: Words) -> Numbers:
    """W&B's table of runs: a row per run."""
    task, arm, value = (head.index(name) for name in (words.task, words.arm, words.value))
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in body:
        if max(task, arm, value) < len(row) and _is_number(row[value]):
            runs[row[arm], row[task]].append(float(row[value]))
    return {key: summarize(np.array(values)) for key, values in runs.items()}


def _folder(folder: Path, words: Words) -> Numbers:
    """W&B's own files: wandb/run-*/files with the last value of each metric and the configuration."""
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for file in sorted(folder.rglob("wandb-summary.json")):
        try:
            logged = cast(Mapping[str, object], read_json(file, _Logged))
            config = read_yaml(file.with_name("config.yaml"))
        except Unreadable as error:
            raise ConfigError(f"import={folder}: {error}; remove the run, or repair it.") from error
        arm, task = (_setting(config.get(key)) for key in (words.arm, words.task))
        value = logged.get(words.value)
        if isinstance(value, int | float) and arm and task:
            runs[arm, task].append(float(value))
    return {key: summarize(np.array(values)) for key, values in runs.items()}


def _setting(node: object) -> str:
    """A value of W&B's config.yaml, which is in {value: ...}."""
    return str(node.get("value", "")) if isinstance(node, Mapping) else str(node or "")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
