"""Curves over seeds: one metric of one group against env steps, updates or epochs. S seeds, I points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rgpo.report.read.groups import Group
from rgpo.report.read.run import Run
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap
from rgpo.report.stats.bootstrap import MIN_RUNS, Floats
from rgpo.runtime.schema import GLOSSARY

XY = tuple[Floats, Floats]


@dataclass(frozen=True)
class Series:
    """One line in a panel: mean and interval (I,) over the group's used seeds, and each seed's (x, y)."""

    label: str
    x: Floats  # (I,)
    mean: Floats  # (I,), nan where a seed was not measured
    low: Floats  # (I,), nan for fewer than three seeds
    high: Floats  # (I,)
    seeds: tuple[XY, ...]
    num_seeds: int  # number of seeds in the mean
    marks: XY | None = None  # individual points from the seeds


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    task: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[float, ...] = ()  # horizontal reference lines
    title: str = ""  # default: the task


def with_unit(text: str, column: str) -> str:
    """An axis label with the column's unit from the glossary."""
    return f"{text}  [{GLOSSARY[column].unit}]"


def over_iterations(group: Group, column: str, settings: Settings, *, x: str, window: int = 1) -> Series | None:
    """`column` against `x`, with each seed's measurements interpolated linearly; None if no run measured it.

    Mean and interval are of running means over `window` updates; individual seeds are not smoothed.
    """
    drawn = [run for run in group.runs if run.has(column)]
    if not drawn:
        return None
    used = [run for run in group.used if run.has(column)]
    seeds = {run.folder: measured(run, x, column) for run in drawn}
    points = np.unique(np.concatenate([seeds[run.folder][0] for run in used])) if used else np.empty(0)
    values = np.full((len(used), len(points)), np.nan)
    for row, run in zip(values, used, strict=True):
        row[:] = np.interp(points, *seeds[run.folder], left=np.nan, right=np.nan)
    block = max((run.reached / len(run.curve("iteration")) for run in used), default=1.0)  # updates per point
    values = bootstrap.running_mean(values, max(1, round(window / block)))
    return over_seeds(group, column, settings, points, values, tuple(seeds.values()))


def over_epochs(group: Group, column: str, settings: Settings) -> Series | None:
    """Mean over a run's iterations of a list `column`, against epochs 1..K; None if no run measured it."""
    drawn = [run for run in group.runs if run.has(column)]
    if not drawn:
        return None
    num_epochs = max(len(run.reduced.lists[column]) for run in drawn)
    epochs = np.arange(1.0, num_epochs + 1)
    seeds = {run.folder: np.full(num_epochs, np.nan) for run in drawn}
    for run in drawn:
        found = run.reduced.lists[column]
        seeds[run.folder][: len(found)] = found
    used = [seeds[run.folder] for run in group.used if run.folder in seeds]
    values = np.array(used) if used else np.empty((0, num_epochs))
    return over_seeds(group, column, settings, epochs, values, tuple((epochs, y) for y in seeds.values()))


def over_seeds(group: Group, name: str, settings: Settings, x: Floats, values: Floats, seeds: tuple[XY, ...]) -> Series:
    """Mean and bootstrap interval of values (S, I)."""
    rng = bootstrap.generator(settings.seed, group.task, group.label, name)
    low, high = bootstrap.mean_interval(values, rng, num_resamples=settings.num_resamples, confidence=settings.confidence)
    mean = values.mean(axis=0) if len(values) else np.full(len(x), np.nan)
    return Series(group.label, x, mean, low, high, seeds, len(values))


def panels(
    groups: Sequence[Group], column: str, settings: Settings, *, y_label: str, x: str = "iteration", window: int = 1
) -> tuple[Panel, ...]:
    """One panel per task that measured the column."""
    x_label = {"iteration": "update", "env_steps": "environment steps"}[x]
    made = []
    for task in tasks(groups):
        found = (over_iterations(group, column, settings, x=x, window=window) for group in groups if group.task == task)
        series = tuple(s for s in found if s is not None)
        if series:
            made.append(Panel(task, x_label, y_label, series))
    return tuple(made)


def epoch_panels(groups: Sequence[Group], column: str, settings: Settings, *, y_label: str) -> tuple[Panel, ...]:
    """One panel per task that measured the list column."""
    made = []
    for task in tasks(groups):
        found = (over_epochs(group, column, settings) for group in groups if group.task == task)
        series = tuple(s for s in found if s is not None)
        if series:
            made.append(Panel(task, "passes over the batch (epochs)", y_label, series))
    return tuple(made)


def rows(groups: Sequence[Group], settings: Settings, y_labels: Mapping[str, str], window: int = 1) -> tuple[Panel, ...]:
    """For each task, one panel per metric (column -> y label), in that order; tasks without data are omitted."""
    found = [panels(groups, column, settings, y_label=text, window=window) for column, text in y_labels.items()]
    by_place = {(panel.task, panel.y_label): panel for many in found for panel in many}
    with_data = sorted({task for task, _ in by_place})
    return tuple(by_place.get((t, text), Panel(t, "update", text, ())) for t in with_data for text in y_labels.values())


def measured(run: Run, x: str, column: str) -> XY:
    """The points of a run at which the column was measured."""
    there = ~np.isnan(run.curve(column))
    return run.curve(x)[there], run.curve(column)[there]


def tasks(groups: Iterable[Group]) -> list[str]:
    """Sorted task names."""
    return sorted({group.task for group in groups})


def labels(drawn: Iterable[Panel]) -> list[str]:
    """Labels of all panels' series, in order of first appearance."""
    return list(dict.fromkeys(series.label for panel in drawn for series in panel.series))


def interval_text(drawn: Iterable[Panel], settings: Settings, window: int = 1) -> str:
    """The end of a caption, which explains thick lines, bands and thin lines."""
    drawn = tuple(drawn)
    mean = f"mean over {_seeds_text(drawn)}" + (f", running mean over {window} updates" if window > 1 else "")
    raw = "single seeds, not smoothed" if window > 1 else "single seeds"
    return f"Thick: {mean}; {band_text(settings)}; thin: {raw} (at most 5)."


def band_text(settings: Settings) -> str:
    """The clause of a caption about bands; with three seeds, a percentile bootstrap spans the smallest to the largest value."""
    interval = f"{100 * settings.confidence:g} % percentile-bootstrap interval of the mean"
    return f"band: smallest to largest of {MIN_RUNS} seeds, {interval} from {MIN_RUNS + 1} on (none below {MIN_RUNS})"


def _seeds_text(drawn: Iterable[Panel]) -> str:
    """Number of seeds as text: '3 seeds', '1 to 3 seeds'."""
    counts = {series.num_seeds for panel in drawn for series in panel.series if series.num_seeds}
    if not counts:
        return "no finished seed"
    few, many = min(counts), max(counts)
    return f"{few} to {many} seeds" if few != many else f"{many} seed{'s' if many > 1 else ''}"
