"""Statistics for few seeds: paired differences, spread over seeds, and multiple comparisons.

The n pairs (x_i, y_i) are runs with the same configuration and seed under two states of the code, which share random numbers.
Runs of different algorithms do not, and are compared as independent samples (independent.py). Student's t is used for x - y,
because a bootstrap over 3 to 5 seeds is far too narrow (tests/test_report_stats.py), and Fieller's interval for the ratio of
means, which contains 1 exactly when Student's contains 0. All methods are exact for normal values. Our choice; the paper does
not describe its comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import chdtri, stdtr, stdtrit

from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Floats
from rgpo.report.stats.independent import Summary, summarize

MIN_SPREAD_RUNS = 10  # fewer seeds may all be from one mode of a bimodal return, so no finite interval for the spread would cover


class Change(NamedTuple):
    """x compared with y: difference of means and relative change in percent, with intervals; nan with fewer than MIN_RUNS pairs.

    A relative interval is infinite if y's mean cannot be distinguished from 0. p: two-sided, for no difference.
    """

    num_pairs: int
    difference: float
    low: float
    high: float
    percent: float
    percent_low: float
    percent_high: float
    p: float


def change(x: Mapping[int, float], y: Mapping[int, float], confidence: float) -> Change:
    """Compare two mappings seed -> value over their common seeds."""
    seeds = sorted(seed for seed in x.keys() & y.keys() if math.isfinite(x[seed]) and math.isfinite(y[seed]))
    if not seeds:
        return Change(0, *[NAN] * 7)
    first, second = (np.array([values[seed] for seed in seeds]) for values in (x, y))
    difference, base = float(np.mean(first - second)), float(np.mean(second))
    percent = 100 * difference / abs(base) if base else NAN
    if len(seeds) < MIN_RUNS:
        return Change(len(seeds), difference, NAN, NAN, percent, NAN, NAN, NAN)
    low, high, p = student(first - second, confidence)
    return Change(len(seeds), difference, low, high, percent, *_percent_interval(first, second, confidence), p)


def student(values: Floats, confidence: float) -> tuple[float, float, float]:
    """Student's interval for the mean of values (n,), and two-sided p for mean 0."""
    n, mean = values.size, float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if error == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return mean - half, mean + half, 2 * float(stdtr(n - 1, -abs(mean) / error))


def fieller(x: Floats, y: Floats, confidence: float) -> tuple[float, float]:
    """Fieller's (1954) interval for E x / E y from pairs (n,): every rho for which mean(x - rho y) may be 0; may be infinite."""
    n = x.size
    t2 = float(stdtrit(n - 1, 0.5 + confidence / 2)) ** 2 / n
    (vx, vxy), (_, vy) = np.cov(x, y)
    a = float(np.mean(y)) ** 2 - t2 * vy
    b = float(np.mean(x) * np.mean(y)) - t2 * vxy
    c = float(np.mean(x)) ** 2 - t2 * vx
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (b - root) / a, (b + root) / a


def coefficient_of_variation(values: Floats, confidence: float) -> tuple[float, float, float]:
    """Coefficient of variation 100 s / |mean| of values (n,) in percent, with the interval of Vangel (1996), possibly infinite.

    s uses n - 1; all nan for fewer than two values or mean 0. With fewer than MIN_SPREAD_RUNS values, the interval is [0, inf]:
    Vangel's assumes normal values, and covers 77 % at a nominal 95 % if a quarter of the runs have 2.5 times the others' return.
    """
    return spread(summarize(values), confidence)


def spread(x: Summary, confidence: float) -> tuple[float, float, float]:
    """``coefficient_of_variation`` of a sample given by mean, standard deviation and size."""
    n = x.n
    if n < 2 or not x.mean:
        return NAN, NAN, NAN
    k = x.sd / abs(x.mean)
    if n < MIN_SPREAD_RUNS:
        return 100 * k, 0.0, math.inf
    ends = []
    for tail in (0.5 - confidence / 2, 0.5 + confidence / 2):  # upper tails of chi-square with n - 1 degrees of freedom
        u = float(chdtri(n - 1, tail))
        square = ((u + 2) / n - 1) * k * k + u / (n - 1)
        ends.append(100 * k / math.sqrt(square) if square > 0 else math.inf)
    return 100 * k, ends[0], ends[1]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values; nan remains nan and is not counted."""
    tested = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    adjusted, largest = [NAN] * len(p), 0.0
    for rank, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * value))
        adjusted[i] = largest
    return adjusted


def _percent_interval(x: Floats, y: Floats, confidence: float) -> tuple[float, float]:
    low, high = (100 * (ratio - 1) for ratio in fieller(x, y, confidence))
    return (low, high) if float(np.mean(y)) > 0 else (-high, -low)  # percent of |E y|
