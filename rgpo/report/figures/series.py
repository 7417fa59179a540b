"""Curves over seeds: one metric of one group against env steps, updates or epochs. S seeds, I points.

compute: `over_iterations`, `over_epochs`; draw: `draw_series`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from rgpo.report import stats
from rgpo.report.groups import Group
from rgpo.report.load import Run
from rgpo.report.settings import Settings
from rgpo.report.stats import Floats
from rgpo.report.style import Line


@dataclass(frozen=True)
class Series:
    """One line of a panel: mean and interval (I,) over the seeds in `mean_of`, and every seed (x, y) by itself."""

    label: str
    x: Floats  # (I,)
    mean: Floats  # (I,), nan where a seed is not measured
    low: Floats  # (I,), nan for fewer than three seeds
    high: Floats  # (I,)
    seeds: tuple[tuple[Floats, Floats], ...]
    num_seeds: int  # that the mean is made of


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    task: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[float, ...] = ()  # horizontal reference lines


def over_iterations(group: Group, column: str, settings: Settings, *, x: str, window: int = 1) -> Series | None:
    """`column` against column `x`; straight lines between a seed's measurements; None if no run measured it.

    Mean and interval are those of running means over `window` points; the seeds stay raw.
    """
    drawn = [run for run in group.runs if run.has(column)]
    if not drawn:
        return None
    used = [run for run in group.used if run.has(column)]
    seeds = {run.folder: _measured(run, x, column) for run in drawn}
    points = np.unique(np.concatenate([seeds[run.folder][0] for run in used])) if used else np.empty(0)
    values = np.full((len(used), len(points)), np.nan)
    for row, run in zip(values, used, strict=True):
        row[:] = np.interp(points, *seeds[run.folder], left=np.nan, right=np.nan)
    values = stats.running_mean(values, window)
    return _series(group, column, settings, points, values, tuple(seeds.values()))


def over_epochs(group: Group, column: str, settings: Settings) -> Series | None:
    """Mean over a run's iterations of a list `column`, against the epoch 1..K; None if no run measured it."""
    drawn = [run for run in group.runs if run.has(column)]
    if not drawn:
        return None
    num_epochs = max(run.columns[column].shape[1] for run in drawn)
    epochs = np.arange(1.0, num_epochs + 1)
    seeds = {run.folder: _mean_over_rows(run.columns[column], num_epochs) for run in drawn}
    used = [seeds[run.folder] for run in group.used if run.folder in seeds]
    values = np.array(used) if used else np.empty((0, num_epochs))
    return _series(group, column, settings, epochs, values, tuple((epochs, y) for y in seeds.values()))


def panels(
    groups: Sequence[Group], column: str, settings: Settings, *, y_label: str, x: str = "iteration", window: int = 1
) -> tuple[Panel, ...]:
    """One panel a task that measured the column."""
    made = []
    for task in tasks(groups):
        found = (over_iterations(group, column, settings, x=x, window=window) for group in groups if group.task == task)
        series = tuple(s for s in found if s is not None)
        if series:
            made.append(Panel(task, y_label, series))
    return tuple(made)


def tasks(groups: Iterable[Group]) -> list[str]:
    """Names of the tasks, sorted."""
    return sorted({group.task for group in groups})


def labels(drawn: Iterable[Panel]) -> list[str]:
    """Labels of all panels' series in order of first appearance."""
    return list(dict.fromkeys(series.label for panel in drawn for series in panel.series))


def seeds_text(drawn: Iterable[Panel]) -> str:
    """'3 seeds', '1 to 3 seeds'."""
    counts = {series.num_seeds for panel in drawn for series in panel.series if series.num_seeds}
    if not counts:
        return "no finished seed"
    few, many = min(counts), max(counts)
    return f"{few} to {many} seeds" if few != many else f"{many} seed{'s' if many > 1 else ''}"


def interval_text(drawn: Iterable[Panel], settings: Settings, window: int = 1) -> str:
    """The clause of a caption that says what thick lines, bands and thin lines are."""
    band = f"band: {100 * settings.confidence:g} % percentile-bootstrap interval of the mean"
    mean = f"mean over {seeds_text(drawn)}" + (f", running mean over {window} updates" if window > 1 else "")
    raw = "each seed, not smoothed" if window > 1 else "each seed"
    return f"Thick: {mean}; {band} (none below {stats.MIN_RUNS} seeds); thin: {raw}."


def draw_series(axes: Axes, series: Series, line: Line, *, order: int, count: int, band: float = 0.13) -> None:
    """Thin seeds, band, mean. Each of `count` series has its markers elsewhere, so that grey print can be read."""
    for x, y in series.seeds:
        axes.plot(x, y, color=line.color, linewidth=0.45, alpha=0.3, zorder=2)
    axes.fill_between(series.x, series.low, series.high, color=line.color, alpha=band, linewidth=0, zorder=2.2)
    num_points = len(series.x)
    step = max(1, num_points // 6)
    start = int(step * (order + 0.5) / count) if step > 1 else 0
    axes.plot(
        series.x,
        series.mean,
        color=line.color,
        linestyle=line.dashes,
        marker=line.marker,
        markevery=(start, step),
        zorder=3,
    )


def _measured(run: Run, x: str, column: str) -> tuple[Floats, Floats]:
    measured = ~np.isnan(run.columns[column])
    return run.columns[x][measured], run.columns[column][measured]


def _mean_over_rows(values: Floats, width: int) -> Floats:
    """Mean of the measured entries of (I, K) in each column, as (width,); nan where there is none."""
    measured = ~np.isnan(values)
    totals, counts = np.where(measured, values, 0.0).sum(axis=0), measured.sum(axis=0)
    means = np.full(width, np.nan)
    means[: values.shape[1]] = np.divide(totals, counts, out=np.full(len(totals), np.nan), where=counts > 0)
    return means


def _series(
    group: Group, column: str, settings: Settings, x: Floats, values: Floats, seeds: tuple[tuple[Floats, Floats], ...]
) -> Series:
    rng = stats.generator(settings.seed, group.task, group.label, column)
    low, high = stats.mean_interval(values, rng, num_resamples=settings.num_resamples, confidence=settings.confidence)
    mean = values.mean(axis=0) if len(values) else np.full(len(x), np.nan)
    return Series(group.label, x, mean, low, high, seeds, len(values))
