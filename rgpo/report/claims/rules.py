"""The rules that judge runs, a closed set. Each is applied per task, and to the null arm in the same way.

A rule holds, fails, or leaves a task open; an open task comes with the fewest seeds per arm that would decide it if mean and
spread stayed the same. A rule holds based on our confidence interval. It fails based on the prediction interval for a result like
the paper's, which is wider by sqrt(2), because the paper's estimate has its own error, assumed equal to ours if not published.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from rgpo.errors import require
from rgpo.report.claims.evidence import Sample
from rgpo.report.read.reduce import LAST_TENTH
from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Interval
from rgpo.report.stats.independent import MAX_RUNS, Summary, noise, relative_change, student
from rgpo.report.stats.small_samples import MIN_SPREAD_RUNS, spread
from rgpo.report.tables.table import between, percent, plain

HOLDS, FAILS, OPEN = "holds", "fails", "open"
Number = tuple[str, str]  # a metric's column and its statistic over a run's rows


class Finding(NamedTuple):
    """The outcome in one task, our numbers as text, and the seeds per arm that would decide (0: unknown)."""

    outcome: str
    text: str
    n: int = 0


@dataclass(frozen=True)
class Rule(ABC):
    """A rule about runs."""

    needs_baseline: ClassVar[bool] = True

    @abstractmethod
    def numbers(self) -> list[Number]:
        """The run statistics that the rule uses."""

    def curves(self) -> list[str]:
        """The metrics of which it uses every measured row."""
        return []

    @abstractmethod
    def sentence(self) -> str:
        """The rule as text that completes "reproduced if"."""

    @abstractmethod
    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        """Judge one task; an arm must have at least MIN_RUNS runs or be a published number."""


@dataclass(frozen=True)
class OfNumbers(Rule):
    """Base class of rules on one number per run."""

    metric: str

    @property
    @abstractmethod
    def read(self) -> str:
        """The statistic over a run's rows."""

    @abstractmethod
    def decide(self, task: str, x: Summary, y: Summary, published: bool, confidence: float) -> tuple[str, str]:
        """The outcome in one task and our numbers as text; published: whether y is a published number with its own error."""

    def numbers(self) -> list[Number]:
        return [(self.metric, self.read)]

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        x, y = (sample.summary(self.metric, self.read) for sample in (arm, baseline))
        published = baseline.anchor is not None
        outcome, text = self.decide(task, x, y, published, confidence)

        def decides(n: int) -> bool:
            more = [found._replace(n=max(n, found.n)) if sample.runs else found for found, sample in ((x, arm), (y, baseline))]
            return self.decide(task, more[0], more[1], published, confidence)[0] != OPEN

        present = [sample.n for sample in (arm, baseline) if sample.runs]
        return Finding(outcome, text, fewest(decides, min(present)) if present and outcome == OPEN else 0)


def fewest(decides: Callable[[int], bool], present: int) -> int:
    """The smallest n > present for which decides(n), found by bisection (decides is monotone); MAX_RUNS + 1 if there is none."""
    low, high = present, MAX_RUNS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Compared(OfNumbers):
    """Base class of rules with a configurable statistic."""

    statistic: str

    @property
    def read(self) -> str:
        """The statistic; `final` always means the last tenth of the rows, regardless of the report's final_fraction."""
        return LAST_TENTH if self.statistic == "final" else self.statistic


def change(x: Summary, y: Summary, confidence: float) -> tuple[Interval, str]:
    """The relative change, and the change as text with the baseline's A/A noise."""
    found, alike = relative_change(x, y, confidence), noise(y, confidence)
    return found, percent(found) + (f" (A/A ±{plain(alike, 2)} %)" if math.isfinite(alike) else "")


@dataclass(frozen=True)
class Parity(Compared):
    """Equivalence (TOST): the relative change against the baseline is within a margin."""

    margin: float  # percent

    def __post_init__(self) -> None:
        require(0 < self.margin < 1000, "margin", self.margin, "give percent above 0")

    def sentence(self) -> str:
        return f"every interval of the change lies within ±{self.margin:g} %; contradicted if a prediction interval lies outside"

    def decide(self, task: str, x: Summary, y: Summary, published: bool, confidence: float) -> tuple[str, str]:
        found, text = change(x, y, confidence)
        if -self.margin <= found.low and found.high <= self.margin:
            return HOLDS, text
        reach = found if published else prediction(found)  # the interval already includes a published number's error
        return (FAILS if reach.low > self.margin or reach.high < -self.margin else OPEN), text


@dataclass(frozen=True)
class Gain(Compared):
    """A change in the paper's direction and of a size compatible with the paper's number."""

    paper: dict[str, float]  # task -> percent
    paper_error: float | None = None  # standard error of the paper's numbers in percent; null: as large as ours

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

    def decide(self, task: str, x: Summary, y: Summary, published: bool, confidence: float) -> tuple[str, str]:
        found, text = change(x, y, confidence)
        goal = self.paper[task]
        sign = math.copysign(1, goal)
        low, high = sorted((sign * found.low, sign * found.high))
        value, own = sign * found.value, self.paper_error
        reach = value + (math.sqrt(2) * (high - value) if own is None else math.hypot(high - value, 1.96 * own))
        return (FAILS if high < 0 or reach < abs(goal) else HOLDS if low > 0 else OPEN), text


@dataclass(frozen=True)
class Level(Compared):
    """A mean over seeds, or a coefficient of variation in percent, within limits."""

    low: float | None = None
    high: float | None = None
    over_seeds: str = "mean"  # mean or cv
    needs_baseline: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.over_seeds in ("mean", "cv"), "over_seeds", self.over_seeds, "give mean or cv")
        require(self.low is not None or self.high is not None, "low", "null", "give low, high or both")
        require(self.lower < self.upper, "low", self.low, f"it is not below high={self.high}; exchange them")
        for key in ("low", "high") if self.over_seeds == "cv" else ():
            require((getattr(self, key) or 0) >= 0, key, getattr(self, key), "a coefficient of variation has none below 0")

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

    def decide(self, task: str, x: Summary, y: Summary, published: bool, confidence: float) -> tuple[str, str]:
        if self.over_seeds == "cv":
            found = Interval(*spread(x, confidence))
            text = f"{plain(found.value, 2)} % {between(found.low, found.high, 2)}"
        else:
            found = student(x, confidence)
            text = f"{plain(found.value, 3)} {between(found.low, found.high, 3)}"
        if self.lower <= found.low and found.high <= self.upper:
            return HOLDS, text
        reach = prediction(found)
        return (FAILS if reach.high < self.lower or reach.low > self.upper else OPEN), text


@dataclass(frozen=True)
class Rate(OfNumbers):
    """The share of updates in which a metric exceeds a threshold is low in one arm and high in the baseline."""

    above: float
    at_most: float  # percent, for the arm
    baseline_at_least: float  # percent, for the baseline

    def __post_init__(self) -> None:
        for key in ("at_most", "baseline_at_least"):
            require(0 <= getattr(self, key) <= 100, key, getattr(self, key), "give percent from 0 to 100")

    @property
    def read(self) -> str:
        return f"share above {self.above:g}"

    def sentence(self) -> str:
        return (
            f"in every task the share of updates above {self.above:g} is at most {self.at_most:g} %, and at least "
            f"{self.baseline_at_least:g} % in the baseline, by their intervals; contradicted if one of them is not, "
            "by its prediction interval"
        )

    def decide(self, task: str, x: Summary, y: Summary, published: bool, confidence: float) -> tuple[str, str]:
        ours, theirs = (student(_in_percent(found), confidence) for found in (x, y))
        text = " against ".join(f"{plain(x.value, 2)} % {between(max(x.low, 0), min(x.high, 100), 2)}" for x in (ours, theirs))
        if ours.high <= self.at_most and theirs.low >= self.baseline_at_least:
            return HOLDS, text
        fails = prediction(ours).low > self.at_most or prediction(theirs).high < self.baseline_at_least
        return (FAILS if fails else OPEN), text


def prediction(found: Interval) -> Interval:
    """Prediction interval for another estimate with the same error: wider by sqrt(2) on each side."""
    low, high = (found.value + math.sqrt(2) * (end - found.value) for end in (found.low, found.high))
    return Interval(found.value, low, high)


def _in_percent(found: Summary) -> Summary:
    return Summary(100 * found.mean, 100 * found.sd if found.n >= MIN_RUNS else NAN, found.n)
