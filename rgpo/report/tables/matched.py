"""One metric as a function of another along each run: reward over KL, compared at equal KL.

A run is a path from (0, 0), the reference policy, through its evaluations; alternatively, a seed's runs with different penalty
strengths form one path through their ends. At each of a few levels of x covered by every path of both arms, y is read off where
the path first reaches the level; the difference between arms has Welch's interval. Intervals hold simultaneously at all levels
(Bonferroni). Comparing at equal KL is our choice: at the end of a run, reward and KL depend on the penalty's coefficient as much
as on the algorithm.
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

LEVELS = 4  # levels of KL in the table and the figure
Path = tuple[Floats, Floats]  # x and y (P,)
REWARDS = {"reward, proxy": PROXY, "reward, gold": GOLD}
OVER_SETTINGS = {  # measure -> (x, y) for curves over settings
    "return, over settings": (KL, TRAIN),
    "proxy reward, over settings": (KL_REF, PROXY),
    "gold reward, over settings": (KL_REF, GOLD),
}


class Matched(NamedTuple):
    """Difference in y and relative change in percent at one level of x."""

    level: float
    difference: Interval
    change: Interval
    alike: Interval  # A/A: 0 with the interval for two sets of the second arm's runs
    num_runs: int  # of the arm with fewer runs


def matched_table(groups: Sequence[Group], settings: Settings) -> Table | None:
    """Results of each arm compared with its task's baseline at equal KL; None without a common range of KL."""
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
    """(arm, baseline, differences of a reward at equal KL) for every arm that shares a range of KL with its task's baseline.

    Arms that were run with several settings are excluded; ``arms_against_baseline`` compares these over settings.
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
    """(arm, baseline's arm, differences of y at equal x) for arms that, like the baseline, were run with several settings."""
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
    """Mean of y at levels of x that all paths reach, with simultaneous Student intervals."""
    largest = min((float(x.max()) for x, _ in paths), default=0.0)
    each = simultaneous(confidence, num_levels)
    levels = largest * np.arange(1, num_levels + 1) / num_levels if largest > 0 else np.array([])
    return [(float(x), student(summarize(np.array([read_off(*path, float(x)) for path in paths])), each)) for x in levels]


def matched(first: Sequence[Path], second: Sequence[Path], num_levels: int, confidence: float) -> list[Matched]:
    """Differences of y between two sets of paths at equal x, up to the largest x that all reach."""
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
    """The paths of all runs that measured both columns at least once."""
    return [path for run in runs if (path := path_of(run, x, y)) is not None]


def path_of(run: Run, x: str, y: str) -> Path | None:
    """(x, y) at the run's evaluations, preceded by the reference policy's (0, 0); None if they were never measured together."""
    both = np.stack([run.path(x), run.path(y)])
    both = both[:, np.isfinite(both).all(axis=0)]
    if not both.shape[1]:
        return None
    return np.concatenate([[0.0], both[0]]), np.concatenate([[0.0], both[1]])


def arm_paths(arm: Arm, x: str, y: str) -> list[Path]:
    """Each seed's path through the ends of its runs."""
    found = (path_through_ends(runs, x, y) for runs in arm.by_seed.values())
    return [path for path in found if path is not None]


def path_through_ends(runs: Iterable[Run], x: str, y: str) -> Path | None:
    """Means of (x, y) over the last tenth of each run, by increasing x; None if no run measured both there.

    The path begins at the run with the smallest x: nothing was measured below, so a line from (0, 0) would be a guess.
    """
    both = (np.stack([run.path(x), run.path(y)]) for run in runs)
    last = (rows[:, -max(1, rows.shape[1] // 10) :] for rows in both)
    ends = sorted(tuple(np.nanmean(rows, 1)) for rows in last if np.isfinite(rows).any(1).all())
    if not ends:
        return None
    levels, values = zip(*ends, strict=True)
    return np.array(levels), np.array(values)


def read_off(x: Floats, y: Floats, level: float) -> float:
    """Linear interpolation of y where a path first reaches a level of x.

    Raises: ValueError if the path never reaches the level.
    """
    reached = np.flatnonzero(x[1:] >= level * (1 - 1e-12))
    if not reached.size:
        raise ValueError(f"level={level:g}: the path ends at {x.max():g}")
    after = int(reached[0]) + 1
    step = x[after] - x[after - 1]
    share = (level - x[after - 1]) / step if step > 0 else 1.0
    return float(y[after - 1] + share * (y[after] - y[after - 1]))
