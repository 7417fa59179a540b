"""Statistics over runs following Agarwal et al. (2021, arXiv 2108.13264): aggregates, profiles, stratified bootstrap.

Legend: S runs of a task, T tasks, B bootstrap resamples, I points. `strata` is a list, over tasks, of scores (S_t,) or resampled
scores (B, S_t); every aggregate accepts either and reduces the last axis. Pure numpy; random numbers come from a given Generator.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Strata = Sequence[Floats]
NAN = float("nan")
MIN_RUNS = 3  # fewest runs for an interval: a bootstrap over one or two runs has no information


class Interval(NamedTuple):
    """An estimate and its interval, nan if there are too few runs."""

    value: float
    low: float
    high: float


def generator(seed: int, *names: str) -> np.random.Generator:
    """A Generator that depends on the seed and the estimate's name, but not on the order of estimation."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def iqm(values: Floats) -> Floats:
    """Interquartile mean: the mean of values (..., S) without the floor(S/4) lowest and highest.

    Raises: ValueError if there are no values.
    """
    if values.shape[-1] == 0:
        raise ValueError("iqm: values=[]: give at least one value")
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def aggregate_mean(strata: Strata) -> Floats:
    """Mean over tasks of the mean over runs."""
    return np.asarray(_task_means(strata).mean(axis=-1))


def aggregate_median(strata: Strata) -> Floats:
    """Median over tasks of the mean over runs."""
    return np.asarray(np.median(_task_means(strata), axis=-1))


def aggregate_iqm(strata: Strata) -> Floats:
    """Interquartile mean over all runs of all tasks; tasks with more runs have more weight."""
    return iqm(np.concatenate(list(strata), axis=-1))


def optimality_gap(strata: Strata) -> Floats:
    """Mean over tasks of E max(0, 1 - score): the average shortfall below the score 1."""
    return np.asarray(1.0 - aggregate_mean([np.minimum(scores, 1.0) for scores in strata]))


AGGREGATES: dict[str, Callable[[Strata], Floats]] = {
    "mean": aggregate_mean,
    "IQM": aggregate_iqm,
    "median": aggregate_median,
    "optimality gap": optimality_gap,
}


def performance_profile(strata: Strata, thresholds: Floats) -> Floats:
    """Share of runs above each threshold, mean over tasks: (..., S_t) and (K,) -> (..., K)."""
    shares = []
    for scores in strata:
        order = np.sort(scores, axis=-1).reshape(-1, scores.shape[-1])
        above = [scores.shape[-1] - np.searchsorted(row, thresholds, side="right") for row in order]
        shares.append(np.array(above).reshape(*scores.shape[:-1], len(thresholds)) / scores.shape[-1])
    return np.asarray(np.mean(shares, axis=0))


def probability_of_improvement(first: Strata, second: Strata) -> Floats:
    """P(X > Y) + P(X = Y)/2 for a run X of the first and Y of the second, mean over tasks (Mann-Whitney's U / (S_x S_y))."""
    chances = []
    for x, y in zip(first, second, strict=True):
        gap = x[..., :, None] - y[..., None, :]
        chances.append((np.mean(gap > 0, axis=(-2, -1)) + np.mean(gap >= 0, axis=(-2, -1))) / 2)
    return np.asarray(np.mean(chances, axis=0))


def bootstrap(strata: Strata, rng: np.random.Generator, num_resamples: int) -> list[Floats]:
    """Resample runs with replacement within each task: [(S_t,)] -> [(B, S_t)].

    Raises: ValueError if a stratum is empty.
    """
    if not strata or any(scores.size == 0 for scores in strata):
        raise ValueError("bootstrap: strata contain an empty one: give at least one run in each")
    return [scores[rng.integers(scores.size, size=(num_resamples, scores.size))] for scores in strata]


def estimate(
    strata: Strata, statistic: Callable[[Strata], Floats], rng: np.random.Generator, *, num_resamples: int, confidence: float
) -> Interval:
    """A statistic and its percentile interval under the stratified bootstrap.

    Everything is nan if there are no runs; the interval is nan if a stratum has fewer than MIN_RUNS runs.
    """
    sizes = [scores.size for scores in strata]
    if min(sizes) == 0:
        return Interval(NAN, NAN, NAN)
    if min(sizes) < MIN_RUNS:
        return Interval(float(statistic(strata)), NAN, NAN)
    low, high = percentiles(statistic(bootstrap(strata, rng, num_resamples)), confidence)
    return Interval(float(statistic(strata)), float(low), float(high))


def mean_interval(values: Floats, rng: np.random.Generator, *, num_resamples: int, confidence: float) -> tuple[Floats, Floats]:
    """Percentile interval (I,), (I,) of the mean over runs of values (S, I); nan where S < MIN_RUNS or a run is nan."""
    num_runs, num_points = values.shape
    low, high = np.full(num_points, np.nan), np.full(num_points, np.nan)
    usable = np.isfinite(values).all(axis=0)
    if num_runs < MIN_RUNS or not usable.any():
        return low, high
    shares = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=num_resamples) / num_runs  # (B, S)
    low[usable], high[usable] = percentiles(shares @ values[:, usable], confidence)
    return low, high


def percentiles(estimates: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Lower and upper end (...) of the central `confidence` interval of estimates (B, ...)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.ascontiguousarray(np.moveaxis(estimates, 0, -1)), [tail, 1 - tail], axis=-1)
    return low, high


def survival(values: Floats) -> tuple[Floats, Floats]:
    """Empirical P(X >= x) of values (n,): the positive values x in ascending order, and the share of values >= x."""
    x = np.sort(values[np.isfinite(values) & (values > 0)])
    return x, np.arange(len(x), 0, -1) / max(len(x), 1)


def running_mean(values: Floats, window: int) -> Floats:
    """Centered mean of values (S, I) over `window` points, fewer at the ends; nan entries remain nan and are skipped."""
    if window == 1 or not values.size:
        return values
    measured = ~np.isnan(values)
    before, after = (window - 1) // 2, window // 2
    ends = np.arange(values.shape[1])
    start, stop = np.maximum(ends - before, 0), np.minimum(ends + after + 1, values.shape[1])
    sums, counts = (
        np.concatenate([np.zeros((len(values), 1)), np.cumsum(x, axis=1)], axis=1)
        for x in (np.where(measured, values, 0.0), measured)
    )
    with np.errstate(invalid="ignore"):  # an infinite value makes all later means nan
        means = (sums[:, stop] - sums[:, start]) / np.maximum(counts[:, stop] - counts[:, start], 1)
    return np.where(measured, means, np.nan)


def _task_means(strata: Strata) -> Floats:
    return np.stack([scores.mean(axis=-1) for scores in strata], axis=-1)
