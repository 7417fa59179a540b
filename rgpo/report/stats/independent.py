"""Independent samples: Welch's interval of a difference, Fieller's of a ratio, and the sample size that would decide.

Two runs of different algorithms share a seed and nothing else, so they are independent: pairing them has no basis (the
intraclass correlation over seeds is about -0.2 in our runs) and costs degrees of freedom. Everything here takes mean, standard
deviation and size, so that a published number with its spread is a sample like ours. Exact for normal values with equal
variances, approximate otherwise (tests/test_independent.py has the coverage).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Floats, Interval

MAX_RUNS = 1000  # a sample size that would decide is not searched beyond it


class Summary(NamedTuple):
    """A sample: mean, standard deviation with n - 1, and size; all nan and 0 for an empty one."""

    mean: float
    sd: float
    n: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n) if self.n else NAN


def summarize(values: Floats) -> Summary:
    """Summary of values (n,); the standard deviation of a single value is nan."""
    if not values.size:
        return Summary(NAN, NAN, 0)
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if values.size > 1 else NAN, int(values.size))


def student(x: Summary, confidence: float) -> Interval:
    """Student's interval of a mean; nan below MIN_RUNS values."""
    half = _quantile(x.n - 1, confidence) * x.error if x.n >= MIN_RUNS else NAN
    return Interval(x.mean, x.mean - half, x.mean + half)


def welch(x: Summary, y: Summary, confidence: float) -> tuple[Interval, float]:
    """Difference of two means with Welch's (1947) interval, and the two-sided p of 0; nan below MIN_RUNS values of either."""
    difference = x.mean - y.mean
    if min(x.n, y.n) < MIN_RUNS:
        return Interval(difference, NAN, NAN), NAN
    error = math.hypot(x.error, y.error)
    if error == 0:
        return Interval(difference, difference, difference), 1.0 if difference == 0 else 0.0
    freedom = _freedom(x.error**2, x.n, y.error**2, y.n)
    half = _quantile(freedom, confidence) * error
    return Interval(difference, difference - half, difference + half), 2 * float(stdtr(freedom, -abs(difference) / error))


def relative_change(x: Summary, y: Summary, confidence: float) -> Interval:
    """Change of x against y in percent of |mean of y|, with Fieller's (1954) interval for independent samples.

    The interval is every rho for which mean(x) - rho mean(y) may be 0, infinite where mean(y) is not distinguishable from 0; the
    degrees of freedom are Welch's at the estimate.
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
    t2 = _quantile(_freedom(vx, x.n, ratio**2 * vy, y.n), confidence) ** 2
    a, b, c = y.mean**2 - t2 * vy, x.mean * y.mean, x.mean**2 - t2 * vx
    if a <= 0:
        return Interval(percent, -math.inf, math.inf)
    root = math.sqrt(max(b * b - a * c, 0.0))
    low, high = sorted(sign * 100 * ((b + end) / a - 1) for end in (-root, root))
    return Interval(percent, low, high)


def deciding_size(found: Interval, n: int, distance: float, confidence: float, arms: int) -> int:
    """The fewest runs per arm at which an interval around the same estimate would be narrower than `distance` on each side.

    The wider half-width scales as t(n)/sqrt(n), with arms (n - 1) degrees of freedom. 0 if it cannot be computed; MAX_RUNS + 1 if
    more than MAX_RUNS would be needed.
    """
    half = max(found.high - found.value, found.value - found.low)
    if not math.isfinite(half) or not distance > 0 or n < MIN_RUNS:
        return 0
    unit = half * math.sqrt(n) / _quantile(arms * (n - 1), confidence)
    sizes = np.arange(MIN_RUNS, MAX_RUNS + 1)
    fits = unit * stdtrit(arms * (sizes - 1), 0.5 + confidence / 2) / np.sqrt(sizes) < distance
    return int(sizes[np.argmax(fits)]) if fits.any() else MAX_RUNS + 1


def intraclass_correlation(pairs: Floats) -> float:
    """ICC(1) of pairs (n, 2) after each arm's mean is removed: the gain of pairing by seed; about 0 for independent runs."""
    centered = pairs - pairs.mean(axis=0)
    n = len(pairs)
    between = 2 * float(np.sum(centered.mean(axis=1) ** 2)) / max(n - 1, 1)
    within = float(np.sum((centered - centered.mean(axis=1, keepdims=True)) ** 2)) / max(n - 1, 1)
    return (between - within) / (between + within) if between + within > 0 else NAN


def simultaneous(confidence: float, num_levels: int) -> float:
    """Confidence of each of several intervals that hold together with the given one (Bonferroni)."""
    return 1 - (1 - confidence) / num_levels


def noise(x: Summary, confidence: float) -> float:
    """Percent of |mean| that the means of two further samples like x differ by at most, with the given confidence (A/A noise)."""
    if x.n < MIN_RUNS or x.mean == 0:
        return NAN
    return 100 * _quantile(x.n - 1, confidence) * math.sqrt(2) * x.error / abs(x.mean)


def _freedom(vx: float, nx: int, vy: float, ny: int) -> float:
    """Welch-Satterthwaite degrees of freedom of squared standard errors."""
    total = vx**2 / (nx - 1) + vy**2 / (ny - 1)
    return (vx + vy) ** 2 / total if total > 0 else float(nx + ny - 2)


def _quantile(freedom: float, confidence: float) -> float:
    return float(stdtrit(freedom, 0.5 + confidence / 2))
