"""Reduction of any number of rows to a few hundred points per curve and the numbers for the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rgpo.report.read.columns import ITERATION, KL, NUMBERS, PATHS, RATIO_MAX, TOKENS
from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime.schema import is_list

WALL = "wall"  # derived curve: seconds since the start, counting iterations only
LARGEST_KL = f"{KL}:max"  # derived curve: largest KL in each block of rows
SUM_TOKENS = "tokens"  # derived curve: completion tokens since the start
CPU = "cpu"  # derived curve: CPU seconds since the start
TOTALS = {WALL: ITERATION, SUM_TOKENS: TOKENS, CPU: "time/iteration_cpu_s"}
ENDS_EARLY = "ends early"  # statistic: 1 if a column was no longer measured at the end of the run, else missing
LAST_TENTH = "last tenth"  # statistic: like "final" with final_fraction=0.1
SHARE = "share above "  # statistic: share of rows above the number that follows
PATH_POINTS = 400  # most points of a path, however many runs there are
MAX_QUANTILES = 200  # most quantiles of ratio/max over a run's updates


class Detail(NamedTuple):
    """Resolution of the reduction."""

    final_fraction: float  # "final" is the mean over this last share of a run's measured rows
    thresholds: tuple[float, ...]  # nats; the share of updates above each is computed
    num_points: int  # most points per curve
    numbers: tuple[tuple[str, str], ...] = ()  # additional (column, statistic) to keep
    paths: tuple[str, ...] = ()  # additional columns to keep as paths


class Reduced(NamedTuple):
    """A run's curves (P,) of means over P blocks of rows, lists (K,) of means over all rows, and numbers.

    Curves are drawn, and have fewer points the more runs there are. Results are read off paths, which do not.
    """

    curves: dict[str, Floats]
    paths: dict[str, Floats]
    lists: dict[str, Floats]
    numbers: dict[tuple[str, str], float]
    spike_rates: Floats  # share of updates with KL above each threshold; nan if not measured
    ratio_quantiles: Floats  # quantiles of each update's largest ratio


def reduce(columns: Mapping[str, Floats], detail: Detail, own: Collection[str] = ()) -> Reduced:
    """Reduce a run's columns; numbers use all rows, and curves are unchanged if there are at most num_points rows.

    own: the run's own metrics, whose final values are also kept.
    """
    numbers = {}
    for column, name in dict.fromkeys((*NUMBERS, *detail.numbers, *((column, "final") for column in own))):
        if column in columns and not is_list(column):
            values = columns[column][~np.isnan(columns[column])]
            numbers[column, name] = _statistic(name)(values, detail) if values.size else float("nan")
            if _ends_early(columns[column]):
                numbers[column, ENDS_EARLY] = 1.0
    kl = columns.get(KL, np.empty(0))
    kl = kl[~np.isnan(kl)]
    rates = [np.mean(kl > threshold) if kl.size else np.nan for threshold in detail.thresholds]
    ratio = columns.get(RATIO_MAX, np.empty(0))
    ratio = ratio[np.isfinite(ratio)]
    quantiles = np.quantile(ratio, np.linspace(0, 1, min(detail.num_points, MAX_QUANTILES))) if ratio.size else np.empty(0)
    lists = {name: mean_over_rows(values) for name, values in columns.items() if is_list(name)}
    curves = _thin(columns, detail.num_points)
    paths = _thin({name: columns[name] for name in ("iteration", *PATHS, *detail.paths) if name in columns}, PATH_POINTS)
    return Reduced(curves, paths, lists, numbers, np.array(rates), quantiles)


def _ends_early(values: Floats) -> bool:
    """True if a column (I,) has no value in more than its last tenth of rows, and the gap is longer than any earlier one."""
    measured = np.flatnonzero(~np.isnan(values))
    if not measured.size:
        return False
    end = len(values) - 1 - int(measured[-1])
    return end > max(0.1 * len(values), int(np.diff(measured, prepend=-1).max()))


def mean_over_rows(values: Floats) -> Floats:
    """Mean (K,) over the measured entries in each column of (I, K); nan if there are none."""
    measured = ~np.isnan(values)
    totals, counts = np.where(measured, values, 0.0).sum(axis=0), measured.sum(axis=0)
    return np.asarray(np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0))


def _thin(columns: Mapping[str, Floats], num_points: int) -> dict[str, Floats]:
    flat = {name: values for name, values in columns.items() if not is_list(name)}
    flat |= {total: np.cumsum(np.nan_to_num(columns[name])) for total, name in TOTALS.items() if name in columns}
    num_rows = len(flat["iteration"])
    largest = {LARGEST_KL: flat[KL]} if KL in flat else {}
    if num_rows <= num_points:
        return flat | largest
    starts = np.arange(num_points) * num_rows // num_points
    means = {name: _block_means(values, starts) for name, values in flat.items()}
    return means | {name: np.fmax.reduceat(kl, starts) for name, kl in largest.items()}


def _block_means(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Mean of the measured values (I,) in each block between consecutive starts (P,); nan if there are none."""
    measured = ~np.isnan(values)
    if measured.all():
        return np.asarray(np.add.reduceat(values, starts) / np.diff(starts, append=len(values)))
    totals = np.add.reduceat(np.where(measured, values, 0.0), starts)
    counts = np.add.reduceat(measured, starts, dtype=np.int64)
    return np.asarray(np.divide(totals, counts, out=np.full(len(starts), np.nan), where=counts > 0))


def is_statistic(name: str) -> bool:
    """True for the name of a statistic over a run's rows: final, mean, ..., or "share above 0.04"."""
    try:
        return name in _STATISTICS or (name.startswith(SHARE) and math.isfinite(float(name.removeprefix(SHARE))))
    except ValueError:
        return False


def _statistic(name: str) -> Callable[[Floats, Detail], float]:
    if not name.startswith(SHARE):
        return _STATISTICS[name]
    threshold = float(name.removeprefix(SHARE))
    return lambda values, _: float(np.mean(values > threshold))


def _final(values: Floats, detail: Detail) -> float:
    return float(np.mean(values[-max(1, round(detail.final_fraction * len(values))) :]))


_STATISTICS: dict[str, Callable[[Floats, Detail], float]] = {
    "first": lambda values, _: float(values[0]),
    "last": lambda values, _: float(values[-1]),
    "final": _final,
    LAST_TENTH: lambda values, detail: _final(values, detail._replace(final_fraction=0.1)),
    "mean": lambda values, _: float(np.mean(values)),
    "median": lambda values, _: float(np.median(values)),
    "sum": lambda values, _: float(np.sum(values)),
    "count": lambda values, _: float(values.size),
}
