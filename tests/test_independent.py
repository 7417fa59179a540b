"""Independent samples against scipy, and the coverage and sizes that they state."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t, ttest_ind

from rgpo.report.cli import parse
from rgpo.report.stats.bootstrap import Interval
from rgpo.report.stats.independent import (
    MAX_RUNS,
    Summary,
    combination,
    deciding_size,
    intraclass_correlation,
    noise,
    relative_change,
    simultaneous,
    student,
    summarize,
    welch,
)
from rgpo.report.tables.overall import aggregates


def test_welch_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for sizes in ((3, 3), (3, 8), (10, 4)):
        x, y = (rng.normal(i, 1 + i, size) for i, size in enumerate(sizes))
        found, p = welch(summarize(x), summarize(y), 0.95)
        judge = ttest_ind(x, y, equal_var=False)
        assert p == pytest.approx(judge.pvalue)
        assert found[1:] == pytest.approx(tuple(judge.confidence_interval(0.95)))
    assert math.isnan(welch(summarize(x[:2]), summarize(y), 0.95)[0].low)
    assert welch(Summary(2.0, 0.0, 3), Summary(1.0, 0.0, 3), 0.95) == (Interval(1.0, 1.0, 1.0), 0.0)


@pytest.mark.parametrize(("num_seeds", "spread"), [(3, 1.0), (5, 3.0), (10, 0.3)])
def test_intervals_of_independent_arms_cover(num_seeds: int, spread: float) -> None:
    """True difference 10 and change +10 %, arms of unequal spread; the estimates have no bias beyond their error."""
    rng = np.random.default_rng(num_seeds)
    x, y = rng.normal(110, 5, (2000, num_seeds)), rng.normal(100, 5 * spread, (2000, num_seeds))
    both = [(summarize(a), summarize(b)) for a, b in zip(x, y, strict=True)]
    differences = [welch(a, b, 0.95)[0] for a, b in both]
    changes = [relative_change(a, b, 0.95) for a, b in both]
    for found, true in ((differences, 10.0), (changes, 10.0)):
        assert np.mean([i.value for i in found]) == pytest.approx(true, abs=0.5)
        assert np.mean([i.low <= true <= i.high for i in found]) == pytest.approx(0.955, abs=0.02)


def test_a_difference_of_differences_covers_and_is_the_pooled_one_for_equal_variances() -> None:
    rng = np.random.default_rng(4)
    means, spreads, sizes = (8.0, 5.0, 1.0, 4.0), (1.0, 3.0, 0.5, 2.0), (3, 5, 5, 10)
    found = []
    for _ in range(3000):
        samples = [summarize(rng.normal(*one)) for one in zip(means, spreads, sizes, strict=True)]
        found.append(combination(samples, (1, -1, -1, 1), 0.95)[0])
    assert np.mean([i.value for i in found]) == pytest.approx(6.0, abs=0.1)
    assert np.mean([i.low <= 6.0 <= i.high for i in found]) == pytest.approx(0.95, abs=0.02)
    alike = [Summary(mean, 2.0, 5) for mean in means]
    half = t.ppf(0.975, 16) * math.sqrt(4 * 2.0**2 / 5)
    assert combination(alike, (1, -1, -1, 1), 0.95)[0] == pytest.approx((6.0, 6.0 - half, 6.0 + half))
    assert math.isnan(combination([*alike[:3], Summary(1.0, 1.0, 2)], (1, -1, -1, 1), 0.95)[0].low)


def test_a_change_against_a_mean_near_0_is_unbounded_and_a_negative_one_keeps_its_sign() -> None:
    assert relative_change(Summary(5, 1, 5), Summary(0.1, 1, 5), 0.95)[1:] == (-math.inf, math.inf)
    found = relative_change(Summary(-50, 5, 5), Summary(-100, 5, 5), 0.95)
    assert found.value == pytest.approx(50) and found.low < 50 < found.high


def test_pairing_by_seed_widens_the_interval_of_independent_runs() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4000, 3, 2))
    paired = np.mean([np.subtract(*x.T).std(ddof=1) * 4.303 / math.sqrt(3) for x in draws])
    apart = np.mean([welch(summarize(x[:, 0]), summarize(x[:, 1]), 0.95)[0].high for x in draws])
    assert paired / apart > 1.15
    assert np.mean([intraclass_correlation(x) for x in rng.normal(size=(2000, 10, 2))]) == pytest.approx(0, abs=0.02)
    shared = rng.normal(size=(500, 20, 1)) * 3 + rng.normal(size=(500, 20, 2))
    assert np.mean([intraclass_correlation(x) for x in shared]) == pytest.approx(0.9, abs=0.02)


def test_the_deciding_size_is_the_one_that_brute_force_finds() -> None:
    sample = Summary(3.0, 4.0, 5)
    found = student(sample, 0.95)
    size = deciding_size(found, 5, 3.0, 0.95, 1)
    assert student(Summary(3.0, 4.0, size), 0.95).low > 0 >= student(Summary(3.0, 4.0, size - 1), 0.95).low
    assert deciding_size(found, 5, 0.01, 0.95, 1) == MAX_RUNS + 1
    assert deciding_size(Interval(1.0, -math.inf, math.inf), 5, 1.0, 0.95, 2) == 0


def test_simultaneous_intervals_hold_together() -> None:
    rng = np.random.default_rng(2)
    each = simultaneous(0.95, 4)
    hits = [
        all(i.low <= 0 <= i.high for i in (student(summarize(x), each) for x in draw)) for draw in rng.normal(size=(1500, 4, 6))
    ]
    assert 0.94 <= np.mean(hits) <= 0.975


def test_scores_over_tasks_count_the_baselines_own_uncertainty() -> None:
    """Two tasks, ten seeds, a true score of 1.2: with the baseline's mean taken as known the interval covers far less."""
    rng, settings = np.random.default_rng(3), parse(["num_resamples=200"])[0]
    hits, known, values = [], [], []
    for _ in range(300):
        raw = {label: {task: rng.normal(mean, 0.2, 10) for task in "ab"} for label, mean in (("ppo", 1.0), ("rgpo", 1.2))}
        found = {label: {t: x / raw["ppo"][t].mean() for t, x in by_task.items()} for label, by_task in raw.items()}
        joint, alone = (aggregates(found, baseline, settings)["rgpo"]["mean"] for baseline in ("ppo", "nobody"))
        hits.append(joint.low <= 1.2 <= joint.high)
        known.append(alone.low <= 1.2 <= alone.high)
        values.append(joint.value)
    assert np.mean(values) == pytest.approx(1.2, abs=0.02)
    assert np.mean(hits) > 0.89 and np.mean(known) < 0.85
    (unit,) = {round(x, 9) for x in aggregates(found, "ppo", settings)["ppo"]["mean"]}
    assert unit == 1.0


def test_noise_is_what_two_halves_of_one_arm_show() -> None:
    rng = np.random.default_rng(4)
    draws = rng.normal(100, 20, (2000, 2, 5))
    exceeds = [abs(x.mean() - y.mean()) > noise(summarize(rng.normal(100, 20, 5)), 0.95) for x, y in draws]
    assert noise(Summary(100, 20, 5), 0.95) == pytest.approx(35.12, abs=0.01)
    assert np.mean(exceeds) == pytest.approx(0.05, abs=0.015)
