"""Groups of runs that may be averaged: same task, algorithm and config, apart from the seed."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rgpo.report.read.run import Problem, Run
from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime.reader import printable
from rgpo.runtime.schema import AXES, NOT_IDENTITY

MAX_SHOWN = 60  # most characters of a value in a label


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    task: str
    algo: str
    label: str  # algorithm and values of the config keys that distinguish its variants
    runs: tuple[Run, ...]  # every readable run, by seed
    used: tuple[Run, ...]  # the runs used in means, intervals and tables

    @property
    def scale(self) -> str:
        """The scale: embedded, smollm2 or paper; none for control tasks."""
        return self.runs[0].scale

    @property
    def language(self) -> bool:
        """True if a language model was trained."""
        return self.scale != "none"

    def by_seed(self, column: str, statistic: str) -> dict[int, float]:
        """Seed -> number, for the runs in `used` that measured it."""
        found = {run.seed: run.number(column, statistic) for run in self.used}
        return {seed: value for seed, value in found.items() if np.isfinite(value)}

    def values(self, column: str, statistic: str) -> Floats:
        """The numbers of ``by_seed`` (S,), ordered by seed."""
        return np.array(list(self.by_seed(column, statistic).values()), dtype=np.float64)

    @property
    def provisional(self) -> bool:
        """True if no run is finished, so that all numbers come from unfinished runs."""
        return bool(self.used) and not any(run.complete for run in self.used)


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[Problem]]:
    """Groups sorted by task, algorithm and label, and a problem for each run that is excluded from means."""
    groups, problems = [], []
    by_algo: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_algo[run.algo].append(run)
    for algo, members in sorted(by_algo.items()):
        keys = distinguishing_keys(members)
        variants: dict[tuple[Hashable, ...], list[Run]] = defaultdict(list)
        for run in members:
            variants[(run.task, *(_value(run, key) for key in keys))].append(run)
        for variant in variants.values():
            unique, found = _one_per_seed(variant)
            used, more = _usable(unique)
            problems += found + more
            label = " ".join([algo, *filter(None, [short_label(variant[0], keys)])])
            groups.append(Group(variant[0].task, algo, label, tuple(unique), tuple(used)))
    return sorted(groups, key=lambda g: (g.task, g.algo, _natural(g.label))), problems


def distinguishing_keys(runs: Sequence[Run]) -> list[str]:
    """A small set of config keys that distinguishes all runs of an algorithm that differ in more than the seed.

    Keys are chosen greedily: a key is added if it varies among runs of the same task (task.* may differ between tasks) and splits
    them further than the previous keys, so a subkey of an option (gate.sharpness) must vary for the same option.
    """
    names = {key for run in runs for key in run.config if identifies(key)}
    first = [*(f"choices.{axis}" for axis in AXES), "total_env_steps", "num_iterations"]
    ordered = [key for key in first if key in names] + sorted(names - set(first), key=lambda key: (key.count("."), key))
    keys: list[str] = []
    cells: dict[Path, Hashable] = {run.folder: run.task for run in runs}
    for key in ordered:
        finer = {run.folder: (cells[run.folder], _value(run, key)) for run in runs}
        if len(set(finer.values())) > len(set(cells.values())):
            keys.append(key)
            cells = dict(finer)
    return keys


def identity(run: Run, without: Collection[str] = ()) -> Hashable:
    """The values of all keys that identify a run; equal for runs that differ only in the seed or in the keys `without`."""
    return tuple(sorted((key, repr(_value(run, key))) for key in run.config if key not in without and identifies(key)))


def short_label(run: Run, keys: Sequence[str]) -> str:
    """The values of distinguishing keys, such as "lr=0.001 gate=clip"."""
    return " ".join(f"{_short(key, keys)}={_shown(run, key)}" for key in keys)


def identifies(key: str) -> bool:
    """True if runs with different values of the key count as different experiments."""
    top, leaf = key.partition(".")[0], key.rpartition(".")[2]
    if leaf == "seed" or leaf.endswith("_seed") or key in ("choices.task", "choices.algo"):
        return False
    return top not in NOT_IDENTITY and top != "hydra"


def _value(run: Run, key: str) -> Hashable:
    value = run.config.get(key)
    if key == "resume_from":  # each seed continues a different run
        return value is not None
    return value if isinstance(value, Hashable) else repr(value)


def _short(key: str, keys: Sequence[str]) -> str:
    """The last part of a key, or the whole key if another one has the same last part."""
    leaf = key.rpartition(".")[2]
    alike = sum(other.rpartition(".")[2] == leaf for other in keys) > 1
    return key.removeprefix("choices.") if alike else leaf


def _shown(run: Run, key: str) -> str:
    value = run.config.get(key) if key != "resume_from" else run.config.get(key) is not None
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, int) and value >= 10_000 and value % 1_000 == 0:
        return f"{value // 1_000}k" if value % 1_000_000 else f"{value // 1_000_000}M"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    text = str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)
    if printable(text, MAX_SHOWN) == text:
        return text
    return f"{printable(text[:MAX_SHOWN])}...{zlib.crc32(text.encode()):08x}"  # keeps values with the same beginning distinct


def _natural(label: str) -> list[tuple[int, float, str]]:
    """Natural sort key: k=5 before k=10."""
    parts = label.replace("=", " ").split()
    numbers = [part.removesuffix("k").removesuffix("M") for part in parts]
    is_number = [re.fullmatch(r"-?[0-9]*\.?[0-9]+", number) is not None for number in numbers]
    return [(0, float(n), "") if yes else (1, 0.0, p) for n, p, yes in zip(numbers, parts, is_number, strict=True)]


def _one_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Problem]]:
    """The most advanced run of each seed, the earliest of several, so that no seed is counted twice."""
    best: dict[int, Run] = {}
    problems = []
    for run in sorted(runs, key=lambda r: (r.seed, not r.complete, -r.reached, r.started, r.run_id)):
        if run.seed in best:
            kept = best[run.seed].run_id
            problems.append(Problem(run.where, f"has the config and seed of {kept}; it is left out"))
        else:
            best[run.seed] = run
    return list(best.values()), problems


def _usable(runs: Sequence[Run]) -> tuple[list[Run], list[Problem]]:
    """The finished runs or, if there are none, the unfinished ones that did not fail."""
    complete = [run for run in runs if run.complete]
    used = complete or [run for run in runs if run.status != "failed"]
    problems = []
    for run in runs:
        if run not in used or run.status == "failed":
            state = "incomplete" if run.status in ("completed", "unknown") else run.status
            reason = f" ({run.reason})" if run.reason else ""
            progress = f"at iteration {run.reached} of {run.num_iterations}"
            problems.append(Problem(run.where, f"{state} {progress}{reason}; drawn as a thin line, left out of means and tables"))
    return used, problems
