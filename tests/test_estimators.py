"""Mean and coverage of the report's estimators under laws that are known; those of differences are in test_independent.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from rgpo.report.claims.evidence import Sample
from rgpo.report.claims.external import Anchor
from rgpo.report.claims.rules import FAILS, OPEN, Level, Parity, prediction
from rgpo.report.claims.theory import CostRatio, Round, ratios_of
from rgpo.report.read.run import Run
from rgpo.report.stats import bootstrap
from rgpo.report.stats.bootstrap import Floats, Interval
from rgpo.report.stats.independent import student, summarize
from rgpo.report.tables.matched import at_levels, matched, paths_of


class Curves:
    """The part of a run that is read here: two columns."""

    def __init__(self, x: Floats, y: Floats) -> None:
        self.columns = {"x": x, "y": y}

    def path(self, name: str) -> Floats:
        return self.columns[name]


class Values(Sample):
    """A sample of given values."""

    def values(self, column: str, statistic: str) -> Floats:
        return np.array(cast(Sequence[float], self.runs))

    @property
    def n(self) -> int:
        return len(self.runs)


def sample(values: Floats) -> Sample:
    return Values(cast(tuple[Run, ...], tuple(values)))


def covered(found: Sequence[Interval], true: float) -> float:
    return float(np.mean([i.low <= true <= i.high for i in found]))


def test_a_prediction_interval_holds_a_second_estimate() -> None:
    """Of as many runs with the same spread, as a paper's."""
    rng = np.random.default_rng(0)
    draws = rng.normal(10, 3, (3000, 2, 5))
    hits = [i.low <= y.mean() <= i.high for x, y in draws for i in [prediction(student(summarize(x), 0.95))]]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_a_rule_fails_only_beyond_the_prediction_interval() -> None:
    """A mean whose own interval is outside the limits, but which a paper's result with the same error would not contradict."""
    values = 12.0 + np.array([-1.0, 0.0, 1.0])  # Student: 12 -+ 2.48, prediction 12 -+ 3.51
    rule = Level("m", "mean", high=9.0)
    assert rule.judge("t", sample(values), Sample(), 0.95).outcome == OPEN
    assert rule.judge("t", sample(values + 1), Sample(), 0.95).outcome == FAILS
    ours, theirs = sample(100 + 10 * np.array([-1.0, 0, 1])), sample(160 + 10 * np.array([-1.0, 0, 1]))
    parity = Parity("m", "mean", margin=20)
    assert parity.judge("t", ours, theirs, 0.95).outcome == OPEN
    found = parity.judge("t", ours, Sample(anchor=Anchor(160, 10, 3)), 0.95)  # whose published error is in the interval
    assert found.outcome == FAILS and "(A/A ±" in found.text


def test_matched_differences_and_levels() -> None:
    """Paths sqrt(x) times a slope of 1.2 and 1, with noise over runs: true difference .2 sqrt(level), at four levels together."""
    rng = np.random.default_rng(1)
    x = np.linspace(0.05, 4, 60)
    joint, values, own = [], [], []
    for _ in range(200):
        slopes = rng.normal([[1.2], [1.0]], 0.1, (2, 6))
        first, second = ([cast(Run, Curves(x, s * np.sqrt(x))) for s in row] for row in slopes)
        found = matched(paths_of(first, "x", "y"), paths_of(second, "x", "y"), 4, 0.95)
        true = [0.2 * np.sqrt(at.level) for at in found]
        joint.append(all(at.difference.low <= t <= at.difference.high for at, t in zip(found, true, strict=True)))
        values.append(found[-1].difference.value / true[-1])
        assert all(at.alike.value == 0 and at.alike.high > 0 and at.num_runs == 6 for at in found)
        levels = at_levels([(np.r_[0, x], np.r_[0, s * np.sqrt(x)]) for s in slopes[0]], 4, 0.95)
        own.append(all(i.low <= 1.2 * np.sqrt(level) <= i.high for level, i in levels))
    assert np.mean(values) == pytest.approx(1, abs=0.1)
    assert np.mean(joint) >= 0.93 and np.mean(own) >= 0.93


def test_ratios_of_costs_in_rounds_that_share_their_load() -> None:
    """True ratio 1.1; the load of a round, here up to 20 times, is in both arms."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(1000):
        load = np.exp(rng.normal(0, 1, 7))
        times = {"ppo": load * np.exp(rng.normal(0, 0.05, 7)), "rgpo": 1.1 * load * np.exp(rng.normal(0, 0.05, 7))}
        rounds = [Round("control", algo, i, float(s)) for algo, row in times.items() for i, s in enumerate(row)]
        logs = student(summarize(np.log(ratios_of(rounds, "rgpo", "ppo"))), 0.95)
        found.append(Interval(*(float(np.exp(x)) for x in logs)))
    assert np.mean([i.value for i in found]) == pytest.approx(1.1, rel=0.01)
    assert covered(found, 1.1) == pytest.approx(0.95, abs=0.02)
    assert CostRatio("rgpo", "ppo", ["control"], 1.2, 7)._task("control", rounds, 0.95).text.startswith("control 1.1")


def test_shares_of_updates() -> None:
    """Rates of spikes that differ from run to run; each run has 200 updates."""
    rng = np.random.default_rng(3)
    shares = rng.binomial(200, rng.beta(20, 20, (2000, 5))) / 2
    found = [student(summarize(row), 0.95) for row in shares]
    assert np.mean([i.value for i in found]) == pytest.approx(50, abs=0.5)
    assert covered(found, 50.0) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("name", "cover"), [("mean", 0.9), ("IQM", 0.9), ("median", 0.88)])
def test_aggregates(name: str, cover: float) -> None:
    """Three tasks, ten runs each: the stratified percentile bootstrap covers a little less than it states."""
    rng = np.random.default_rng(4)
    statistic, found = bootstrap.AGGREGATES[name], []
    for i in range(300):
        strata = [rng.normal(1, 0.3, 10) for _ in range(3)]
        found.append(bootstrap.estimate(strata, statistic, bootstrap.generator(i, "a"), num_resamples=200, confidence=0.95))
    assert np.mean([i.value for i in found]) == pytest.approx(1, abs=0.03) and cover < covered(found, 1.0) < 0.97


def test_probability_of_improvement() -> None:
    """P(N(.5, 1) > N(0, 1)) = .638, two tasks."""
    rng, found = np.random.default_rng(5), []

    def statistic(both: Sequence[Floats]) -> Floats:
        return bootstrap.probability_of_improvement(both[:2], both[2:])

    for i in range(200):
        strata = [rng.normal(mean, 1, 10) for mean in (0.5, 0.5, 0, 0)]
        found.append(bootstrap.estimate(strata, statistic, bootstrap.generator(i, "p"), num_resamples=200, confidence=0.95))
    assert np.mean([i.value for i in found]) == pytest.approx(0.638, abs=0.02) and 0.88 < covered(found, 0.638) < 0.98
