"""Comparison of two states of the results, paired by seed: which changes exceed noise."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from rgpo.errors import ConfigError, require
from rgpo.report.read.columns import GOLD, KL, KL_REF, PROXY, SPEED, TRAIN
from rgpo.report.read.committed import extract
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import experiments, read_runs, run_folders
from rgpo.report.read.run import Problem, Run
from rgpo.report.read.workers import workers
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import MIN_RUNS, Interval
from rgpo.report.stats.small_samples import Change, change, holm
from rgpo.report.tables.table import Cell, Table, estimate, interval_cells, number, word
from rgpo.runtime.reader import user_path

MEASURES = {
    "return": (TRAIN, "final"),
    "reward, proxy": (PROXY, "final"),
    "reward, gold": (GOLD, "final"),
    "KL to reference": (KL_REF, "final"),
    "KL per update": (KL, "mean"),
    "steps/s": (SPEED, "median"),
}
CHANGED, TOO_FEW, NOISE, SAME = "changed", f"differs, n < {MIN_RUNS}", "within noise", "identical"
ORDER = (CHANGED, TOO_FEW, NOISE, SAME)


def compare(first: str, second: str, settings: Settings) -> tuple[str, list[Problem]]:
    """A table of all measures common to both, changes first, and a problem for everything that only one of them has.

    Raises: ConfigError if one of them cannot be read, or if they have nothing in common.
    """
    with ExitStack() as stack:
        sides = [_folder(name, settings, stack) for name in (first, second)]
        names = [set(experiments(folder, None, f"compare={name}")) for folder, name in zip(sides, (first, second), strict=True)]
        if settings.experiment:
            names = [found & {settings.experiment} for found in names]
        problems = [
            Problem(name, f"only in {side}") for i, side in enumerate((first, second)) for name in names[i] - names[1 - i]
        ]
        rows: list[dict[str, Cell]] = []
        for name in sorted(names[0] & names[1]):
            (before, after), found = _groups([folder / name for folder in sides], settings)
            problems += found
            for key in sorted({*before, *after}):
                if key in before and key in after:
                    rows += _rows(name, *key, before[key], after[key], settings)
                else:
                    problems.append(Problem(f"{name}: {key[1]} ({key[0]})", f"only in {first if key in before else second}"))
    if not rows:
        raise ConfigError(
            f"compare={first} {second}: they have no task and algorithm in common; give two states of one experiment"
        )
    for row, p in zip(rows, holm([float(row["p"]) for row in rows]), strict=True):
        row["p_holm"] = p
        row["verdict"] = _verdict(row, p, settings)
    return _text(rows, first, second), problems


def _folder(name: str, settings: Settings, stack: ExitStack) -> Path:
    """A results folder, or results_dir as of a commit, extracted to a folder that is deleted when the stack closes."""
    require(not name.startswith("-"), "compare", name, "begins with -; give a commit, or ./ and the name of a folder")
    if user_path(name).is_dir():
        return user_path(name)
    results = Path(settings.results_dir)
    above = results.resolve().parent
    try:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        extract(above, name, [results.name], folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"compare={name}: it is neither a folder nor a commit that contains {results} ({error})") from None
    return folder / results.name


def _groups(folders: Sequence[Path], settings: Settings) -> tuple[list[dict[tuple[str, str], Group]], list[Problem]]:
    """(task, label) -> group for each side; settings that differ only between the sides are not in the labels."""
    runs: list[Run] = []
    problems = []
    for i, folder in enumerate(folders):
        with workers(len(run_folders(folder))) as distribute:
            read, found = read_runs(folder, (), settings.final_fraction, settings.thresholds, distribute)
        runs += [replace(run, task=f"{i} {run.task}") for run in read]  # so that the two sides of a task are grouped separately
        problems += found
    groups, found = group_runs(runs)
    sides: list[dict[tuple[str, str], Group]] = [{}, {}]
    for group in groups:
        side, _, task = group.task.partition(" ")
        sides[int(side)][task, group.label] = group
    return sides, problems + found


def _rows(experiment: str, task: str, label: str, first: Group, second: Group, settings: Settings) -> list[dict[str, Cell]]:
    rows = []
    for measure, place in MEASURES.items():
        before, after = first.by_seed(*place), second.by_seed(*place)
        found: Change = change(after, before, settings.confidence)
        if found.num_pairs:
            seeds = before.keys() & after.keys()
            row: dict[str, Cell] = {"experiment": experiment, "task": task, "label": label, "measure": measure}
            row |= {"n": found.num_pairs, "p": found.p, "same": all(before[s] == after[s] for s in seeds)}
            row |= {"before": float(np.mean([before[s] for s in seeds])), "after": float(np.mean([after[s] for s in seeds]))}
            row |= interval_cells("difference", Interval(found.difference, found.low, found.high))
            rows.append(row)
    return rows


def _verdict(row: dict[str, Cell], p_holm: float, settings: Settings) -> str:
    if row["same"]:
        return SAME
    if float(row["n"]) < MIN_RUNS:
        return TOO_FEW
    return CHANGED if p_holm < 1 - settings.confidence else NOISE


def _text(rows: Sequence[dict[str, Cell]], first: str, second: str) -> str:
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ORDER}
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    summary = f"{first} against {second}: {counted} (of {len(rows)} measures; Student's t on pairs, p adjusted after Holm)"
    different = [row for row in rows if not row["same"]]
    if not different:
        return summary
    different.sort(key=lambda row: (ORDER.index(str(row["verdict"])), row["p_holm"]))
    columns = [word(key, key) for key in ("verdict", "measure", "experiment", "task")]
    columns += [word("label", "algorithm"), number("n", "pairs"), number("before", first, 4), number("after", second, 4)]
    columns += [estimate("difference", "difference", sign=True), number("p_holm", "p, Holm")]
    return f"{Table('compare', 'Compare', '', tuple(columns), tuple(different)).markdown()}\n{summary}"
