"""Two metrics along each run, one as a function of the other: reward over KL, compared at equal KL.

Every run is a path from (0, 0), the reference policy, through its evaluations; or a seed's runs, which differ in how strong a
penalty is, are one path through their ends. At each of a few levels of x that every path of both arms covers, y is read off
where the path first reaches it; the difference of the arms is Welch's. Intervals hold at all levels together (Bonferroni).
Comparing at equal KL is our choice: at the end of a run, a reward and a KL follow from the penalty's coefficient as much as from
the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rgpo.report.read.arms import Arm, arms_of
from rgpo.report.read.columns import GOLD, KL, KL_REF, PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.read.run import Run
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import Floats, Interval
from rgpo.report.stats.independent import relative_change, simultaneous, student, summarize, welch
from rgpo.report.tables.baseline import baseline_of
from rgpo.report.tables.table import Cell, Table, estimate, interval_cells, number, word

LEVELS = 4  # of KL in the table and the figure
Path = tuple[Floats, Floats]  # x and y (P,), from (0, 0)
REWARDS = {"reward, proxy": PROXY, "reward, gold": GOLD}
OVER_SETTINGS = {  # measure -> x and y of curves over settings
    "return, over settings": (KL, TRAIN),
    "proxy reward, over settings": (KL_REF, PROXY),
    "gold reward, over settings": (KL_REF, GOLD),
}


class Matched(NamedTuple):
    """At one level of x: the difference of y and the relative change in percent."""

    level: float
    difference: Interval
    change: Interval
    alike: Interval  # A/A: 0, and what two sets of runs of the second arm may differ by
    num_runs: int  # the fewer of both arms


def matched_table(groups: Sequence[Group], settings: Settings) -> Table | None:
    """Results of each arm and of its task's baseline at equal KL; None without a common range of it."""
    rows = []
    for measure, column in REWARDS.items():
        for group, base, found in against_baseline(groups, column, settings):
            rows += [_row(measure, group, base, at) for at in found]
    for measure, (x, y) in OVER_SETTINGS.items():
        for arm, base_arm, found in arms_against_baseline(groups, x, y, settings):
            rows += [_row(measure, arm, base_arm, at) for at in found]
    columns = (
        word("measure", "measure"),
        word("task", "task"),
        word("label", "algorithm"),
        word("baseline", "against"),
        number("n", "n"),
        number("kl", "at KL, nats", 2),
        estimate("difference", "difference", 3, sign=True),
        estimate("percent", "change, %", 3, sign=True),
        estimate("noise", "A/A, difference", 2),
    )
    caption = (
        "Result minus the baseline's where both have the same KL. Rewards are changes against the reference policy; each run is "
        'read off where it first reaches the level of KL to the reference. "Over settings": the ends of runs with weaker and '
        "stronger penalties are one curve per seed, read off there; for returns over the KL per update. "
        f"Brackets: {100 * settings.confidence:g} % Welch and Fieller intervals that hold at the {LEVELS} levels together. "
        "A/A: how far two further sets of runs of the baseline may differ."
    )
    return Table("matched_kl", "At equal KL", caption, columns, tuple(rows), "measure") if rows else None


def against_baseline(groups: Sequence[Group], column: str, settings: Settings) -> list[tuple[Group, Group, list[Matched]]]:
    """(arm, baseline, differences of a reward at equal KL) of every arm that shares a range of KL with its task's baseline.

    Arms that were run with several settings are compared over these, by ``arms_against_baseline``, and left out here.
    """
    found = []
    single = [group for arm in arms_of(groups) if len(arm.groups) == 1 for group in arm.groups]
    for group in single:
        base = baseline_of(group.task, single, settings.baseline)
        if base is not None and base is not group:
            ours, theirs = (paths_of(each.used, KL_REF, column) for each in (group, base))
            levels = matched(ours, theirs, LEVELS, settings.confidence)
            found += [(group, base, levels)] if levels else []
    return found


def arms_against_baseline(groups: Sequence[Group], x: str, y: str, settings: Settings) -> list[tuple[Arm, Arm, list[Matched]]]:
    """(arm, baseline's arm, differences of y at equal x) of arms that were run with several settings, as the baseline was."""
    arms = [arm for arm in arms_of(groups) if len(arm.groups) > 1]
    found = []
    for task in dict.fromkeys(arm.task for arm in arms):
        members = [arm for arm in arms if arm.task == task]
        base = baseline_of(task, [group for arm in members for group in arm.groups], settings.baseline)
        base_arm = next((arm for arm in members if settings.baseline in (arm.label, arm.algo) or base in arm.groups), members[0])
        for arm in members:
            if arm is not base_arm:
                levels = matched(arm_paths(arm, x, y), arm_paths(base_arm, x, y), LEVELS, settings.confidence)
                found += [(arm, base_arm, levels)] if levels else []
    return found


def _row(measure: str, group: Group | Arm, base: Group | Arm, at: Matched) -> dict[str, Cell]:
    row: dict[str, Cell] = {"measure": measure, "task": group.task, "label": group.label, "algo": group.algo}
    row |= {"baseline": base.label, "n": at.num_runs, "kl": at.level}
    row |= interval_cells("difference", at.difference) | interval_cells("percent", at.change)
    return row | interval_cells("noise", at.alike)


def at_levels(paths: Sequence[Path], num_levels: int, confidence: float) -> list[tuple[float, Interval]]:
    """Mean of y at levels of x that all paths reach, with Student intervals that hold together."""
    largest = min((float(x.max()) for x, _ in paths), default=0.0)
    each = simultaneous(confidence, num_levels)
    levels = largest * np.arange(1, num_levels + 1) / num_levels if largest > 0 else np.array([])
    return [(float(x), student(summarize(np.array([read_off(*path, float(x)) for path in paths])), each)) for x in levels]


def matched(first: Sequence[Path], second: Sequence[Path], num_levels: int, confidence: float) -> list[Matched]:
    """Differences of y between two sets of paths at equal x, up to the largest that all reach."""
    if not first or not second:
        return []
    smallest = max(float(x[0]) for x, _ in (*first, *second))
    largest = min(float(x.max()) for x, _ in (*first, *second))
    each = simultaneous(confidence, num_levels)
    found = []
    for level in smallest + (largest - smallest) * np.arange(1, num_levels + 1) / num_levels if largest > smallest else ():
        ours, theirs = (summarize(np.array([read_off(*path, float(level)) for path in side])) for side in (first, second))
        difference, _ = welch(ours, theirs, each)
        again, _ = welch(theirs, theirs, each)
        found.append(Matched(float(level), difference, relative_change(ours, theirs, each), again, min(ours.n, theirs.n)))
    return found


def paths_of(runs: Iterable[Run], x: str, y: str) -> list[Path]:
    """The path of every run that measured both columns at least once."""
    return [path for run in runs if (path := path_of(run, x, y)) is not None]


def path_of(run: Run, x: str, y: str) -> Path | None:
    """(x, y) at the run's evaluations, after the reference policy's (0, 0); None if either was never measured."""
    both = np.stack([run.curve(x), run.curve(y)])
    both = both[:, np.isfinite(both).all(axis=0)]
    if not both.shape[1]:
        return None
    return np.concatenate([[0.0], both[0]]), np.concatenate([[0.0], both[1]])


def arm_paths(arm: Arm, x: str, y: str) -> list[Path]:
    """The path of every seed through the ends of its runs."""
    found = (path_through_ends(runs, x, y) for runs in arm.by_seed.values())
    return [path for path in found if path is not None]


def path_through_ends(runs: Iterable[Run], x: str, y: str) -> Path | None:
    """Means of (x, y) over the last tenth of each run by increasing x; None if no run measured both there.

    It begins at its first run, since nothing was measured below: a line from the reference policy's (0, 0) would be a guess.
    """
    both = (np.stack([run.curve(x), run.curve(y)]) for run in runs)
    last = (rows[:, -max(1, rows.shape[1] // 10) :] for rows in both)
    ends = sorted(tuple(np.nanmean(rows, 1)) for rows in last if np.isfinite(rows).any(1).all())
    if not ends:
        return None
    levels, values = zip(*ends, strict=True)
    return np.array(levels), np.array(values)


def read_off(x: Floats, y: Floats, level: float) -> float:
    """y where a path first reaches a level of x, by linear interpolation.

    Raises: ValueError if it never does.
    """
    reached = np.flatnonzero(x[1:] >= level * (1 - 1e-12))
    if not reached.size:
        raise ValueError(f"level={level:g}: the path ends at {x.max():g}")
    after = int(reached[0]) + 1
    step = x[after] - x[after - 1]
    share = (level - x[after - 1]) / step if step > 0 else 1.0
    return float(y[after - 1] + share * (y[after] - y[after - 1]))
