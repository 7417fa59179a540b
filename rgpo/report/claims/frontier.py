"""Two metrics along each run, one as a function of the other: reward over KL, compared at equal KL.

Every run is a path from (0, 0), the reference policy, through its evaluations. At each of a few levels of x that every run of
both arms reaches, y is read off the path where it first reaches the level; the difference of the arms is Welch's. Intervals hold
at all levels together (Bonferroni). Comparing at equal KL is our choice: at the end of a run, a reward and a KL follow from the
penalty's coefficient as much as from the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rgpo.errors import require
from rgpo.report.claims.evidence import Sample
from rgpo.report.claims.rules import FAILS, HOLDS, OPEN, Finding, Number, Rule
from rgpo.report.read.run import Run
from rgpo.report.stats.bootstrap import Floats, Interval
from rgpo.report.stats.independent import deciding_size, relative_change, simultaneous, summarize, welch
from rgpo.report.tables.table import percent, plain


class Matched(NamedTuple):
    """At one level of x: the difference of y and the relative change in percent."""

    level: float
    difference: Interval
    change: Interval


@dataclass(frozen=True)
class Dominance(Rule):
    """One arm has the larger y at every level of x that both arms reach."""

    x: str  # such as kl/eval_ref_sequence
    y: str  # such as reward/eval_proxy_change
    levels: int = 4

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 50, "levels", self.levels, "give 1 to 50 levels of x")

    def numbers(self) -> list[Number]:
        return []

    def curves(self) -> list[str]:
        return [self.x, self.y]

    def sentence(self) -> str:
        return (
            f"at each of {self.levels} levels of {self.x} that all runs reach, {self.y} is larger, by intervals that hold "
            "together; contradicted if it is smaller at one of them"
        )

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        found = matched(arm.runs, baseline.runs, self.x, self.y, self.levels, confidence)
        if not found:
            return Finding(OPEN, "the runs have no common range")
        last = found[-1]
        text = f"{percent(last.change)} at {plain(last.level, 2)}"
        text += f" (at {plain(found[0].level, 2)}: {percent(found[0].change)})" if len(found) > 1 else ""
        if all(m.difference.low > 0 for m in found):
            return Finding(HOLDS, text)
        if any(m.difference.high < 0 for m in found):
            return Finding(FAILS, text)
        n = min(arm.n, baseline.n)
        each = simultaneous(confidence, self.levels)
        sizes = [deciding_size(m.difference, n, abs(m.difference.value), each, 2) for m in found if m.difference.low <= 0]
        return Finding(OPEN, text, max(sizes, default=0))


def matched(first: tuple[Run, ...], second: tuple[Run, ...], x: str, y: str, num_levels: int, confidence: float) -> list[Matched]:
    """Differences of y between two sets of runs at equal x, at levels from 0 (excluded) to the largest that all reach."""
    sides = [[path for path in (path_of(run, x, y) for run in runs) if path is not None] for runs in (first, second)]
    if not all(sides):
        return []
    largest = min(float(path[0].max()) for side in sides for path in side)
    each = simultaneous(confidence, num_levels)
    found = []
    for level in largest * np.arange(1, num_levels + 1) / num_levels if largest > 0 else ():
        ours, theirs = (summarize(np.array([read_off(*path, float(level)) for path in side])) for side in sides)
        difference, _ = welch(ours, theirs, each)
        found.append(Matched(float(level), difference, relative_change(ours, theirs, each)))
    return found


def path_of(run: Run, x: str, y: str) -> tuple[Floats, Floats] | None:
    """(x, y) at the run's evaluations, after the reference policy's (0, 0); None if either was never measured."""
    both = np.stack([run.curve(x), run.curve(y)])
    both = both[:, np.isfinite(both).all(axis=0)]
    if not both.shape[1]:
        return None
    return np.concatenate([[0.0], both[0]]), np.concatenate([[0.0], both[1]])


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
