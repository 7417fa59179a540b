"""Two states of the results side by side, paired by seed: what changed beyond noise."""

from __future__ import annotations

import io
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rgpo.errors import ConfigError
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import Outcome, Problem, Run, experiments, read_runs, run_folders
from rgpo.report.read.reduce import KL
from rgpo.report.read.workers import workers
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.stats.small_samples import change, holm
from rgpo.report.tables.summary import GOLD, KL_REF, PROXY, SPEED, TRAIN
from rgpo.report.tables.table import Table, estimate, number, word

MEASURES = {
    "return": (TRAIN, "final"),
    "reward, proxy": (PROXY, "final"),
    "reward, gold": (GOLD, "final"),
    "KL to reference": (KL_REF, "final"),
    "KL per update": (KL, "mean"),
    "steps/s": (SPEED, "median"),
}
CHANGED, NOISE, SAME = "changed", "within noise", "identical"
ORDER = (CHANGED, f"differs, n < {MIN_RUNS}", NOISE, SAME)


def compare(first: str, second: str, settings: Settings) -> Outcome:
    """A table of every measure in both, changes first, and what only one of them has. ConfigError if one cannot be read."""
    with ExitStack() as stack:
        sides = [_folder(name, settings, stack) for name in (first, second)]
        names = [set(experiments(folder, None, f"compare={name}")) for folder, name in zip(sides, (first, second), strict=True)]
        if settings.experiment:
            names = [found & {settings.experiment} for found in names]
        problems = [
            Problem(name, f"only in {side}") for i, side in enumerate((first, second)) for name in names[i] - names[1 - i]
        ]
        rows: list[dict[str, Any]] = []
        for name in sorted(names[0] & names[1]):
            groups, found = _groups([folder / name for folder in sides], settings)
            problems += found
            for key in sorted({key for side in groups for key in side}):
                both = [side.get(key) for side in groups]
                if both[0] and both[1]:
                    rows += _rows(name, both[0], both[1], settings)
                else:
                    problems.append(Problem(f"{name}: {key[1]} ({key[0]})", f"only in {first if both[0] else second}"))
    if not rows:
        raise ConfigError(
            f"compare={first} {second}: they have no task and algorithm in common; give two states of one experiment"
        )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["verdict"] = _verdict(row, settings)
    return Outcome(_text(rows, first, second), problems)


def _folder(name: str, settings: Settings, stack: ExitStack) -> Path:
    """A results folder, or results_dir as committed at a commit, unpacked until the end."""
    if Path(name).is_dir():
        return Path(name)
    results = Path(settings.results_dir)
    command = ["git", "-C", str(results.resolve().parent), "archive", "--format=zip", name, "--", results.name]
    try:
        packed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode().strip().splitlines()[:1] or ["git is missing"]
        raise ConfigError(f"compare={name}: it is no folder, and no commit that holds {results} ({why[0]})") from None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(folder)
    return folder / results.name


def _groups(folders: Sequence[Path], settings: Settings) -> tuple[list[dict[tuple[str, str], Group]], list[Problem]]:
    """(task, label) -> group of each side, labelled together; a setting that changed between the sides does not part them."""
    runs: list[Run] = []
    problems = []
    for i, folder in enumerate(folders):
        with workers(len(run_folders(folder))) as distribute:
            read, found = read_runs(folder, (), settings.final_fraction, settings.thresholds, distribute)
        runs += [replace(run, task=f"{i} {run.task}") for run in read]
        problems += found
    groups, found = group_runs(runs)
    sides: list[dict[tuple[str, str], Group]] = [{}, {}]
    for group in groups:
        sides[int(group.task[0])][group.task[2:], group.label] = group
    return sides, problems + found


def _rows(experiment: str, first: Group, second: Group, settings: Settings) -> list[dict[str, Any]]:
    rows = []
    for measure, place in MEASURES.items():
        before, after = first.by_seed(*place), second.by_seed(*place)
        found = change(after, before, settings.confidence)
        if found.num_pairs:
            seeds = before.keys() & after.keys()
            row = {
                "experiment": experiment,
                "task": first.task[2:],
                "label": first.label,
                "measure": measure,
                "n": found.num_pairs,
            }
            row |= {"before": float(np.mean([before[s] for s in seeds])), "after": float(np.mean([after[s] for s in seeds]))}
            row |= {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
            rows.append(row | {"p": found.p, "same": all(before[s] == after[s] for s in seeds)})
    return rows


def _verdict(row: dict[str, Any], settings: Settings) -> str:
    if row["same"]:
        return SAME
    if row["n"] < MIN_RUNS:
        return ORDER[1]
    return CHANGED if row["p_holm"] < 1 - settings.confidence else NOISE


def _text(rows: Sequence[dict[str, Any]], first: str, second: str) -> str:
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ORDER}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    shown = sorted((row for row in rows if not row["same"]), key=lambda row: (ORDER.index(row["verdict"]), row["p_holm"]))
    summary = f"{first} against {second}: {said} (of {len(rows)} measures; Student's t on pairs, p adjusted after Holm)"
    columns = [word(key, key) for key in ("verdict", "measure", "experiment", "task")]
    columns += [word("label", "algorithm"), number("n", "pairs"), number("before", first, 4), number("after", second, 4)]
    columns += [estimate("difference", "difference", sign=True), number("p_holm", "p, Holm")]
    table = Table("compare", "Compare", "", tuple(columns), tuple(shown))
    return f"{table.markdown()}\n{summary}" if shown else summary
