"""The rules that judge runs: a closed set. Each sees one task at a time, and the null arm goes through the same function.

A rule holds, fails, or leaves a task open; for what is open it gives the number of seeds per arm that would decide it, if the
estimate and the spread stayed as they are. It holds by our interval. It fails by the prediction interval of a result like the
paper's: wider by sqrt(2), since the paper's estimate has its own error, taken to be as large as ours where none is published.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from rgpo.errors import require
from rgpo.report.claims.evidence import Sample
from rgpo.report.read.reduce import LAST_TENTH
from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Interval
from rgpo.report.stats.independent import Summary, deciding_size, noise, relative_change, student
from rgpo.report.stats.small_samples import MIN_SPREAD_RUNS, coefficient_of_variation
from rgpo.report.tables.table import between, percent, plain

HOLDS, FAILS, OPEN = "holds", "fails", "open"
Number = tuple[str, str]  # a metric's column, and its statistic over the rows of a run


class Finding(NamedTuple):
    """The outcome in one task, our numbers in words, and the seeds per arm that would decide (0: not known)."""

    outcome: str
    text: str
    n: int = 0


@dataclass(frozen=True)
class Rule(ABC):
    """A rule about runs."""

    needs_baseline: ClassVar[bool] = True

    @abstractmethod
    def numbers(self) -> list[Number]:
        """The statistics of runs that the rule reads."""

    def curves(self) -> list[str]:
        """The metrics of which it reads every measured row."""
        return []

    @abstractmethod
    def sentence(self) -> str:
        """The rule in words, after "reproduced if"."""

    @abstractmethod
    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        """The finding in one task; an arm has at least MIN_RUNS runs or is a published number."""


@dataclass(frozen=True)
class Compared(Rule):
    """Base of the rules about one number per run."""

    metric: str
    statistic: str

    def numbers(self) -> list[Number]:
        return [(self.metric, self.read)]

    @property
    def read(self) -> str:
        """The statistic; `final` is the last tenth of the rows, whatever final_fraction the report has."""
        return LAST_TENTH if self.statistic == "final" else self.statistic

    def _change(self, arm: Sample, baseline: Sample, confidence: float) -> tuple[Interval, str, int]:
        """The relative change, the same in words beside the A/A noise of the baseline, and the fewer runs."""
        x, y = (sample.summary(self.metric, self.read) for sample in (arm, baseline))
        found, alike = relative_change(x, y, confidence), noise(y, confidence)
        text = percent(found) + (f" (A/A ±{plain(alike, 2)} %)" if math.isfinite(alike) else "")
        return found, text, min(x.n, y.n)


@dataclass(frozen=True)
class Parity(Compared):
    """Equivalence (TOST): the relative change against the baseline is within a margin."""

    margin: float  # percent

    def __post_init__(self) -> None:
        require(0 < self.margin < 1000, "margin", self.margin, "give percent above 0")

    def sentence(self) -> str:
        return f"every interval of the change lies within ±{self.margin:g} %; contradicted if a prediction interval lies outside"

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        found, text, n = self._change(arm, baseline, confidence)
        if -self.margin <= found.low and found.high <= self.margin:
            return Finding(HOLDS, text)
        reach = found if baseline.anchor else prediction(found)  # an anchor's own error is in the interval
        if reach.low > self.margin or reach.high < -self.margin:
            return Finding(FAILS, text)
        return Finding(OPEN, text, deciding_size(found, n, abs(self.margin - abs(found.value)), confidence, 2))


@dataclass(frozen=True)
class Gain(Compared):
    """A change in the paper's direction, of a size that is compatible with the paper's number."""

    paper: dict[str, float]  # task -> percent
    paper_error: float | None = None  # percent, standard error of the paper's numbers; null: as large as ours

    def __post_init__(self) -> None:
        require(
            bool(self.paper) and 0.0 not in self.paper.values(), "paper", self.paper, "give each task's change in percent, not 0"
        )
        error = self.paper_error
        require(error is None or 0 < error <= 1000, "paper_error", error, "give percent above 0, or leave it out")

    def sentence(self) -> str:
        error = "an error as large as ours" if self.paper_error is None else f"its error of {self.paper_error:g} %"
        return (
            f"every interval of the change excludes 0 on the paper's side; contradicted if the paper's number, with {error}, is "
            "beyond the prediction interval or the change has the other sign"
        )

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        found, text, n = self._change(arm, baseline, confidence)
        goal = self.paper[task]
        sign = math.copysign(1, goal)
        low, high = sorted((sign * found.low, sign * found.high))
        value, size = sign * found.value, abs(goal)
        half = high - value
        own = self.paper_error
        reach = value + (math.sqrt(2) * half if own is None else math.hypot(half, 1.96 * own))
        if high < 0 or reach < size:
            return Finding(FAILS, text)
        if low > 0:
            return Finding(HOLDS, text)
        return Finding(OPEN, text, deciding_size(found, n, max(abs(value), abs(size - value) / math.sqrt(2)), confidence, 2))


@dataclass(frozen=True)
class Level(Compared):
    """A mean over seeds, or their coefficient of variation in percent, within limits."""

    low: float | None = None
    high: float | None = None
    over_seeds: str = "mean"  # or cv
    needs_baseline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.over_seeds in ("mean", "cv"), "over_seeds", self.over_seeds, "give mean or cv")
        require(self.low is not None or self.high is not None, "low", "null", "give low, high or both")
        require(self.lower < self.upper, "low", self.low, f"it is not below high={self.high}; exchange them")

    @property
    def lower(self) -> float:
        return -math.inf if self.low is None else self.low

    @property
    def upper(self) -> float:
        return math.inf if self.high is None else self.high

    def sentence(self) -> str:
        what = "the mean" if self.over_seeds == "mean" else f"the coefficient of variation ({MIN_SPREAD_RUNS} seeds or more)"
        limits = [f"at least {self.low:g}"] if self.low is not None else []
        limits += [f"at most {self.high:g}"] if self.high is not None else []
        return f"every interval of {what} is {' and '.join(limits)}; contradicted if a prediction interval lies outside"

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        summary = arm.summary(self.metric, self.read)
        if self.over_seeds == "cv":
            found = Interval(*coefficient_of_variation(arm.values(self.metric, self.read), confidence))
            text = f"{plain(found.value, 2)} % {between(found.low, found.high, 2)}"
        else:
            found = student(summary, confidence)
            text = f"{plain(found.value, 3)} {between(found.low, found.high, 3)}"
        if self.lower <= found.low and found.high <= self.upper:
            return Finding(HOLDS, text)
        reach = prediction(found)
        if reach.high < self.lower or reach.low > self.upper:
            return Finding(FAILS, text)
        if self.over_seeds == "cv" and summary.n < MIN_SPREAD_RUNS:
            return Finding(OPEN, text, MIN_SPREAD_RUNS)
        distance = min(abs(found.value - self.lower), abs(found.value - self.upper))
        return Finding(OPEN, text, deciding_size(found, summary.n, distance, confidence, 1))


@dataclass(frozen=True)
class Rate(Rule):
    """The share of a run's updates with a metric above a threshold: low in one arm, high in the baseline."""

    metric: str
    above: float
    at_most: float  # percent, of the arm
    baseline_at_least: float  # percent

    def __post_init__(self) -> None:
        for key in ("at_most", "baseline_at_least"):
            require(0 <= getattr(self, key) <= 100, key, getattr(self, key), "give percent from 0 to 100")

    @property
    def statistic(self) -> str:
        return f"share above {self.above:g}"

    def numbers(self) -> list[Number]:
        return [(self.metric, self.statistic)]

    def sentence(self) -> str:
        return (
            f"in every task the share of updates above {self.above:g} is at most {self.at_most:g} %, and at least "
            f"{self.baseline_at_least:g} % in the baseline, by their intervals; contradicted if one of them is not, "
            "by its prediction interval"
        )

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        ours, theirs = (student(_in_percent(s.summary(self.metric, self.statistic)), confidence) for s in (arm, baseline))
        text = " against ".join(f"{plain(x.value, 2)} % {between(max(x.low, 0), min(x.high, 100), 2)}" for x in (ours, theirs))
        if ours.high <= self.at_most and theirs.low >= self.baseline_at_least:
            return Finding(HOLDS, text)
        if prediction(ours).low > self.at_most or prediction(theirs).high < self.baseline_at_least:
            return Finding(FAILS, text)
        sides = [(ours, abs(ours.value - self.at_most), arm.n)] if ours.high > self.at_most else []
        low = theirs.low < self.baseline_at_least
        sides += [(theirs, abs(theirs.value - self.baseline_at_least), baseline.n)] if low else []
        sizes = [deciding_size(found, n, distance, confidence, 1) for found, distance, n in sides]
        return Finding(OPEN, text, max(sizes, default=0) if all(sizes) else 0)


def prediction(found: Interval) -> Interval:
    """The interval of another estimate with the same error: wider by sqrt(2) on each side."""
    low, high = (found.value + math.sqrt(2) * (end - found.value) for end in (found.low, found.high))
    return Interval(found.value, low, high)


def _in_percent(found: Summary) -> Summary:
    return Summary(100 * found.mean, 100 * found.sd if found.n >= MIN_RUNS else NAN, found.n)
