"""Statistics over runs: interquartile mean and stratified bootstrap after Agarwal et al. (2021), arXiv 2108.13264.

S runs, I iterations, B bootstrap resamples. Pure numpy; every draw comes from a Generator that is passed in.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MIN_RUNS = 3  # below it no interval is given: a bootstrap over one or two runs says nothing


def generator(seed: int, *names: str) -> np.random.Generator:
    """A Generator that depends on the seed and on what is estimated, not on the order of estimation."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def iqm(values: Floats) -> float:
    """Interquartile mean: the mean without the lowest and highest floor(S/4) of values (S,). ValueError if empty."""
    if values.size == 0:
        raise ValueError("iqm: values=[]: give at least one value")
    cut = values.size // 4
    return float(np.mean(np.sort(values)[cut : values.size - cut]))


def coefficient_of_variation(values: Floats) -> float:
    """100 s / |mean| in per cent of values (S,), s with S - 1; nan for fewer than two values or mean 0."""
    mean = float(np.mean(values)) if values.size > 1 else 0.0
    return 100.0 * float(np.std(values, ddof=1)) / abs(mean) if mean else float("nan")


def spike_rate(spikes: Floats) -> float:
    """Share of the measured iterations (not nan) in which kl/spike is 1; nan if none was measured."""
    measured = spikes[~np.isnan(spikes)]
    return float(np.mean(measured > 0.5)) if measured.size else float("nan")


def bootstrap_interval(
    strata: Sequence[Floats],
    statistic: Callable[[Sequence[Floats]], Floats],
    rng: np.random.Generator,
    *,
    num_resamples: int,
    confidence: float,
) -> tuple[float, float]:
    """Percentile interval of a statistic under resampling with replacement inside each stratum.

    strata: runs (S_t,) of task or algorithm t; statistic: [(B, S_t), ...] -> (B,). ValueError for an empty stratum.
    """
    if not strata or any(stratum.size == 0 for stratum in strata):
        raise ValueError("bootstrap_interval: strata hold an empty one: give at least one run in each")
    drawn = [s[rng.integers(s.size, size=(num_resamples, s.size))] for s in strata]
    low, high = _percentiles(statistic(drawn), confidence)
    return float(low), float(high)


def mean_interval(values: Floats, rng: np.random.Generator, *, num_resamples: int, confidence: float) -> tuple[Floats, Floats]:
    """Percentile interval (I,), (I,) of the mean over runs of values (S, I); nan where S < MIN_RUNS or a run is nan."""
    num_runs, num_points = values.shape
    low, high = np.full(num_points, np.nan), np.full(num_points, np.nan)
    usable = np.isfinite(values).all(axis=0)
    if num_runs < MIN_RUNS or not usable.any():
        return low, high
    shares = rng.multinomial(num_runs, np.full(num_runs, 1 / num_runs), size=num_resamples) / num_runs  # (B, S)
    low[usable], high[usable] = _percentiles(shares @ values[:, usable], confidence)
    return low, high


def running_mean(values: Floats, window: int) -> Floats:
    """Centred mean over `window` points of values (S, I), over fewer at the ends; nan stays nan and is not averaged."""
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
    means = (sums[:, stop] - sums[:, start]) / np.maximum(counts[:, stop] - counts[:, start], 1)
    return np.where(measured, means, np.nan)


def mean_of_all(drawn: Sequence[Floats]) -> Floats:
    """Mean over every run of every stratum: [(B, S_t), ...] -> (B,)."""
    return np.asarray(np.concatenate(list(drawn), axis=1).mean(axis=1))


def difference_of_means(drawn: Sequence[Floats]) -> Floats:
    """Mean of the first stratum minus mean of the second: [(B, S_1), (B, S_2)] -> (B,)."""
    first, second = drawn
    return np.asarray(first.mean(axis=1) - second.mean(axis=1))


def _percentiles(estimates: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Lower and upper end (...) of the central `confidence` of estimates (B, ...)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    return low, high
