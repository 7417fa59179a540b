"""Independent samples: Welch's interval for a difference, Fieller's for a ratio, and the sample size that would decide.

Runs of different algorithms with the same seed share nothing else, so they are independent: pairing them has no basis (the
intraclass correlation over seeds is about -0.2 in our runs) and costs degrees of freedom. All functions take mean, standard
deviation and size, so that published numbers can be used like our own samples. Exact for normal values with equal variances,
approximate otherwise (tests/test_independent.py checks the coverage).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Floats, Interval

MAX_RUNS = 1000  # upper limit when searching for a sample size that would decide


class Summary(NamedTuple):
    """A sample: mean, standard deviation (n - 1) and size; nan, nan and 0 for an empty sample."""

    mean: float
    sd: float
    n: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n) if self.n else NAN


def summarize(values: Floats) -> Summary:
    """Summarize values (n,); the standard deviation of a single value is nan."""
    if not values.size:
        return Summary(NAN, NAN, 0)
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if values.size > 1 else NAN, int(values.size))


def student(x: Summary, confidence: float) -> Interval:
    """Student's interval for a mean; nan with fewer than MIN_RUNS values."""
    half = _quantile(x.n - 1, confidence) * x.error if x.n >= MIN_RUNS else NAN
    return Interval(x.mean, x.mean - half, x.mean + half)


def welch(x: Summary, y: Summary, confidence: float) -> tuple[Interval, float]:
    """Difference of two means with Welch's (1947) interval, and two-sided p for 0; nan with fewer than MIN_RUNS values."""
    return combination((x, y), (1.0, -1.0), confidence)


def combination(samples: Sequence[Summary], factors: Sequence[float], confidence: float) -> tuple[Interval, float]:
    """Sum of factor times mean with Welch's (1947) interval, and two-sided p for 0; nan with fewer than MIN_RUNS values.

    With factors (1, -1, -1, 1) it is the difference of two differences.
    """
    value = sum(factor * sample.mean for factor, sample in zip(factors, samples, strict=True))
    if min(sample.n for sample in samples) < MIN_RUNS:
        return Interval(value, NAN, NAN), NAN
    errors = [factor * sample.error for factor, sample in zip(factors, samples, strict=True)]
    error = math.hypot(*errors)
    if error == 0:
        return Interval(value, value, value), 1.0 if value == 0 else 0.0
    freedom = _freedom([one**2 for one in errors], [sample.n for sample in samples])
    half = _quantile(freedom, confidence) * error
    return Interval(value, value - half, value + half), 2 * float(stdtr(freedom, -abs(value) / error))


def relative_change(x: Summary, y: Summary, confidence: float) -> Interval:
    """Change from y to x in percent of |mean of y|, with Fieller's (1954) interval for independent samples.

    The interval contains every rho for which mean(x) - rho mean(y) may be 0; it is infinite if mean(y) cannot be distinguished
    from 0. Degrees of freedom are Welch's at the estimate.
    """
    if not x.n or not y.n or y.mean == 0:
        return Interval(NAN, NAN, NAN)
    ratio = x.mean / y.mean
    sign = 1 if y.mean > 0 else -1
    percent = sign * 100 * (ratio - 1)
    if min(x.n, y.n) < MIN_RUNS:
        return Interval(percent, NAN, NAN)
    vx, vy = x.error**2, y.error**2
    if vx == vy == 0:
        return Interval(percent, percent, percent)
    t2 = _quantile(_freedom([vx, ratio**2 * vy], [x.n, y.n]), confidence) ** 2
    a, b, c = y.mean**2 - t2 * vy, x.mean * y.mean, x.mean**2 - t2 * vx
    if a <= 0:
        return Interval(percent, -math.inf, math.inf)
    root = math.sqrt(max(b * b - a * c, 0.0))
    low, high = sorted(sign * 100 * ((b + end) / a - 1) for end in (-root, root))
    return Interval(percent, low, high)


def deciding_size(found: Interval, n: int, distance: float, confidence: float, arms: int) -> int:
    """The fewest runs per arm for which an interval around the same estimate would be within `distance` on each side.

    The wider half-width is scaled as t(n)/sqrt(n), with arms (n - 1) degrees of freedom. Returns 0 if it cannot be computed, and
    MAX_RUNS + 1 if more than MAX_RUNS are needed.
    """
    half = max(found.high - found.value, found.value - found.low)
    if not math.isfinite(half) or not distance > 0 or n < MIN_RUNS:
        return 0
    unit = half * math.sqrt(n) / _quantile(arms * (n - 1), confidence)
    sizes = np.arange(MIN_RUNS, MAX_RUNS + 1)
    fits = unit * stdtrit(arms * (sizes - 1), 0.5 + confidence / 2) / np.sqrt(sizes) < distance
    return int(sizes[np.argmax(fits)]) if fits.any() else MAX_RUNS + 1


def intraclass_correlation(pairs: Floats) -> float:
    """ICC(1) of pairs (n, 2) after subtracting each arm's mean: the benefit of pairing by seed; about 0 for independent runs."""
    centered = pairs - pairs.mean(axis=0)
    n = len(pairs)
    between = 2 * float(np.sum(centered.mean(axis=1) ** 2)) / max(n - 1, 1)
    within = float(np.sum((centered - centered.mean(axis=1, keepdims=True)) ** 2)) / max(n - 1, 1)
    return (between - within) / (between + within) if between + within > 0 else NAN


def simultaneous(confidence: float, num_levels: int) -> float:
    """Confidence of each of num_levels intervals that hold simultaneously with the given confidence (Bonferroni)."""
    return 1 - (1 - confidence) / num_levels


def noise(x: Summary, confidence: float) -> float:
    """A/A noise: bound, in percent of |mean|, on the difference of two more samples like x, with the given confidence."""
    if x.n < MIN_RUNS or x.mean == 0:
        return NAN
    return 100 * _quantile(x.n - 1, confidence) * math.sqrt(2) * x.error / abs(x.mean)


def _freedom(variances: Sequence[float], sizes: Sequence[int]) -> float:
    """Welch-Satterthwaite degrees of freedom of a sum of squared standard errors."""
    total = sum(variance**2 / (n - 1) for variance, n in zip(variances, sizes, strict=True))
    return sum(variances) ** 2 / total if total > 0 else float(sum(n - 1 for n in sizes))


def _quantile(freedom: float, confidence: float) -> float:
    return float(stdtrit(freedom, 0.5 + confidence / 2))
