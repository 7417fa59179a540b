"""Import of other people's results into results/external: Open RL Benchmark's csv, and exports from W&B.

    rgpo-report import td3_vs_cleanrl.csv name=td3 n=3 steps=1000000 source='Open RL Benchmark' license=MIT
    rgpo-report import runs.csv name=theirs arms=ppo:ppo_continuous_action value=charts/episodic_return steps=1000000 ...
    rgpo-report import wandb/ name=mine ...

Recognized formats: a csv with tasks in the first column, whose header is empty, and cells "mean ± sd" (openrlbenchmark.rlops);
W&B's table of runs (columns for task, arm and value); W&B's chart export, with one column "RUN - METRIC" per run and runs named
as by CleanRL, task__arm__seed__time; and a folder of runs with files/wandb-summary.json and files/config.yaml. The result is the
mean, standard deviation (n - 1) and n over seeds. Our tasks are identified by environment and version; others keep their names.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import yaml

from rgpo.atomic import make_folder, write_text
from rgpo.errors import ConfigError, require
from rgpo.paths import conf_dir
from rgpo.report.claims.external import FOLDER, MAX_N, anchors_of
from rgpo.report.claims.typed import fill
from rgpo.report.stats.independent import Summary, summarize
from rgpo.runtime.reader import Unreadable, printable, read_json, read_text, read_yaml, user_path
from rgpo.runtime.task_name import declared_options

FINAL = 0.1  # a run's number is the mean over this last share of a chart's rows
NUMBER = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
CELL = re.compile(rf"\s*({NUMBER}|nan)\s*±\s*({NUMBER}|nan)\s*", re.IGNORECASE)
SEPARATORS = ",;\t"
SEED = ("seed", "config.seed")  # seed columns in a table of runs
Numbers = Mapping[tuple[str, str], Summary]  # (arm, task) -> statistics over seeds


class _Logged(TypedDict, total=False):
    """wandb-summary.json: everything that a run logged."""


@dataclass(frozen=True)
class Words:
    """The command's arguments other than the file."""

    name: str
    source: str
    license: str
    steps: int | None = None
    n: int | None = None  # number of seeds, if it is not in the file
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
    """Write results_dir/external/NAME.yaml; returns a one-line summary.

    Raises: ConfigError if the file's format is not recognized, or if an argument does not fit it.
    """
    require(bool(re.fullmatch(r"\w[\w.-]*", words.name)), "name", words.name, "give letters, digits, _, - and .")
    path = user_path(words.results_dir) / FOLDER / f"{words.name}.yaml"
    require(not os.path.lexists(path), "name", words.name, f"{path} exists; give another name, or remove the file first")
    found = _folder(file, words) if file.is_dir() else _table(file, words)
    known = {key: x for key, x in found.items() if math.isfinite(x.mean)}
    if not known:
        raise ConfigError(f"import={file}: it has no number; give value= a metric that it holds.")
    ours = dict(_pair(pair, known) for pair in words.arms.split(",") if pair)
    arms: dict[str, dict[str, dict[str, float | int]]] = {}
    for (theirs, environment), x in known.items():
        arm = next((name for part, name in ours.items() if part in theirs), re.sub(r"\W+", "_", theirs).strip("_"))
        require(bool(arm and environment.strip()), "import", file, "an arm or a task has no name; give each one")
        place = arms.setdefault(arm, {})
        task = task_of(environment)
        require(task not in place, "arms", words.arms or theirs, f"{arm} has two numbers in {task}; tell them apart with arms=.")
        spread = {} if math.isnan(x.sd) else {"sd": round(x.sd, 6)}
        place[task] = {"value": round(x.mean, 6), **spread, "n": x.n}
    facts = {key: getattr(words, key) for key in ("source", "url", "protocol", "license", "metric", "differs")}
    node = facts | ({} if words.steps is None else {"steps": words.steps}) | {"arms": arms}
    anchors_of(node, path.name)
    make_folder(path.parent)
    write_text(path, yaml.safe_dump(node, sort_keys=False, allow_unicode=True))
    return f"{path}: {len(known)} numbers of {len(arms)} arms ({', '.join(arms)})"


def _pair(text: str, known: Collection[tuple[str, str]]) -> tuple[str, str]:
    """Split ours:theirs into (part of their arm's name, our name).

    Raises: ConfigError if it has no colon, or if no arm in the file contains that part.
    """
    name, _, part = text.partition(":")
    require(bool(name and part), "arms", text, "write ours:theirs, where theirs is a part of an arm's name in the file")
    there = ", ".join(sorted({arm for arm, _ in known})[:8])
    require(any(part in arm for arm, _ in known), "arms", text, f"no arm of the file has {part} in its name; there are {there}")
    return part, name


def task_of(environment: str) -> str:
    """Our name for an environment: hopper for Hopper-v4, hopper (v2) for another version, or its own name if we have none."""
    env_id, _, version = environment.rpartition("-")
    for path in sorted((conf_dir() / "task").glob("*.yaml")):
        node = declared_options("task", path.stem)
        if env_id and node.get("task.env_id") == env_id:
            return path.stem if node.get("task.version") == version else f"{path.stem} ({version})"
        if node.get("task.env_id") == environment:
            return path.stem
    return environment


def words_of(texts: Sequence[str]) -> Words:
    """Parse the command line's key=value arguments.

    Raises: ConfigError for an unknown, repeated or missing key, or an invalid number.
    """
    names = [entry.name for entry in fields(Words)]
    given: dict[str, str | int] = {}
    for text in texts:
        key, _, value = text.partition("=")
        require(key in names, "import", text, f"give one of {', '.join(names)}, as key=value")
        require(key not in given, key, value, "it is given twice; leave one out")
        number = key in ("steps", "n")
        require(not number or re.fullmatch("[1-9][0-9]{0,14}", value) is not None, key, value, "give a whole number above 0")
        given[key] = int(value) if number else value
    lacking = [key for key in ("name", "source", "license") if not given.get(key)]
    require(not lacking, "import", " ".join(lacking), "these are missing; a number without its source is of no use")
    found = fill(Words, given, "")
    require(found.n is None or found.n <= MAX_N, "n", found.n, f"give 1 to {MAX_N:,} seeds")
    return found


def _table(file: Path, words: Words) -> Numbers:
    try:
        text = read_text(file)
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    except (Unreadable, csv.Error) as error:
        raise ConfigError(f"import={file}: it cannot be read ({error}); give a csv or a folder of W&B.") from error
    rows = [row for row in rows if row]
    require(len(rows) > 1, "import", file, "it has no rows; give a csv with a header")
    head, *body = rows
    if not head[0].strip():
        return _cells(file, head, body, words)
    require(words.n is None, "n", words.n, "is read for a table of mean ± sd only, whose first column has no name; leave it out")
    if any(name.endswith(f" - {words.value}") for name in head):
        return _chart(file, head, body, words)
    if {words.value, words.task, words.arm} <= set(head):
        return _runs(file, head, body, words)
    shown = ", ".join(head[:8])
    raise ConfigError(f"import={file}: its columns ({shown}) are none that is known; name them with task=, arm= and value=.")


def _cells(file: Path, head: Sequence[str], body: Sequence[Sequence[str]], words: Words) -> Numbers:
    """Read Open RL Benchmark's format: rows are tasks, columns are arms; the number of seeds is not in the file."""
    if words.n is None:
        raise ConfigError("n=null: the file does not state how many seeds its numbers have; give n=.")
    found: dict[tuple[str, str], Summary] = {}
    for row in body:
        require(len(row) == len(head), "import", file, f"the row of {row[0]} is not as long as the header; repair it")
        for arm, cell in zip(head[1:], row[1:], strict=True):
            key = arm.removesuffix(" ({})"), row[0]
            match = CELL.fullmatch(cell)
            if cell.strip() and (match is None or match[2].startswith("-")):
                raise ConfigError(
                    f"import={file}: {row[0]}, {arm}: {printable(cell, 40)} is no cell mean ± sd; repair or empty it."
                )
            require(key not in found, "import", file, f"{arm} has two rows for {row[0]}; remove one")
            if match:
                found[key] = Summary(float(match[1]), float(match[2]), words.n)
    return found


def _chart(file: Path, head: Sequence[str], body: Sequence[Sequence[str]], words: Words) -> Numbers:
    """Read W&B's chart: a run's number is the mean of its last tenth of rows, ordered by the first column if it is numeric."""
    if all(_is_number(row[0]) for row in body):
        body = sorted(body, key=lambda row: float(row[0]))
    ends: dict[str, int] = {}
    runs: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for i, name in enumerate(head):
        if not name.endswith(f" - {words.value}"):
            continue
        run = name.removesuffix(f" - {words.value}")
        parts = run.split("__")
        if len(parts) < 3:
            raise ConfigError(f"import={file}: the run {parts[0]} is not named task__arm__seed; export the table of runs.")
        places = [at for at, row in enumerate(body) if i < len(row) and row[i].strip()]
        require(bool(places), "import", file, f"the run {run} has no value; remove its column")
        values, ends[run] = np.array([_finite(file, run, body[at][i]) for at in places]), places[-1]
        _add(file, runs[parts[1], parts[0]], parts[2], float(values[-max(1, round(FINAL * values.size)) :].mean()))
    for run, end in ends.items():
        whole = end + 1 >= (1 - FINAL) * (max(ends.values()) + 1)
        require(whole, "import", file, f"the run {run} ends at row {end + 2} of {max(ends.values()) + 2}; remove its column")
    return _over_seeds(runs)


def _runs(file: Path, head: Sequence[str], body: Sequence[Sequence[str]], words: Words) -> Numbers:
    """Read W&B's table of runs, with one row per run."""
    task, arm, value = (head.index(name) for name in (words.task, words.arm, words.value))
    seed = next((head.index(name) for name in SEED if name in head), None)
    runs: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    doubled = sorted({name for name in (words.task, words.arm, words.value) if head.count(name) > 1})
    require(not doubled, "import", file, f"it has the column {', '.join(doubled)} twice; remove one")
    for number, row in enumerate(body, start=2):
        require(
            max(task, arm, value, seed or 0) < len(row), "import", file, f"row {number} is shorter than the header; repair it"
        )
        name = f"row {number}" if seed is None else row[seed].strip()
        require(bool(name), "import", file, f"row {number} has no seed; give it one")
        _add(file, runs[row[arm], row[task]], name, _finite(file, f"row {number}", row[value]))
    return _over_seeds(runs)


def _folder(folder: Path, words: Words) -> Numbers:
    """Read W&B's own files: wandb/run-*/files with the last value of each metric and the configuration."""
    runs: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for file in sorted(folder.rglob("wandb-summary.json")):
        try:
            logged = cast(Mapping[str, object], read_json(file, _Logged))
            config = read_yaml(file.with_name("config.yaml"))
        except Unreadable as error:
            raise ConfigError(f"import={folder}: {error}; remove the run, or repair it.") from error
        arm, task = (_setting(config.get(key)) for key in (words.arm, words.task))
        run = str(file.parent.relative_to(folder))
        if arm and task:
            require(words.value in logged, "import", folder, f"{run} has no {words.value}; remove the run, or repair it")
            seed = next((_setting(config[name]) for name in SEED if name in config), run)
            _add(folder, runs[arm, task], seed, _finite(folder, run, str(logged[words.value])))
    return _over_seeds(runs)


def _add(file: Path, runs: dict[str, float], seed: str, value: float) -> None:
    """Add a seed's value.

    Raises: ConfigError if the seed already has one.
    """
    seed = f"{float(seed):g}" if _is_number(seed) else seed  # 1.0 equals 1
    require(
        seed not in runs, "import", file, f"seed {printable(seed, 40)} of an arm occurs twice in a task; remove one of its runs"
    )
    runs[seed] = value


def _finite(file: Path, where: str, text: str) -> float:
    """Convert a value to a finite number.

    Raises: ConfigError if it is not, because dropping a run that diverged would flatter its arm.
    """
    if not _is_number(text):
        raise ConfigError(
            f"import={file}: {where} has the value {printable(text.strip(), 40) or 'none'}; remove the run, or give it a number."
        )
    return float(text)


def _over_seeds(runs: Mapping[tuple[str, str], Mapping[str, float]]) -> Numbers:
    return {key: summarize(np.array(list(values.values()))) for key, values in runs.items()}


def _setting(node: object) -> str:
    """A value in W&B's config.yaml, stored as {value: ...}."""
    value = node.get("value") if isinstance(node, Mapping) else node
    return "" if value is None else str(value)


def _is_number(text: str) -> bool:
    return re.fullmatch(rf"\s*\+?{NUMBER}\s*", text, re.IGNORECASE) is not None and math.isfinite(float(text))
