"""Performance profiles: share of runs above each score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel, Series, band_text
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.tables.baseline import scores
from rgpo.report.tables.overall import baseline_name

COLUMNS = (TRAIN, PROXY)
SCALES = ("linear x axis",)
NUM_POINTS = 101


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """One panel over all tasks; none if no task has a baseline for normalization."""
    found = scores(groups, settings)
    if not found:
        return ()
    everything = np.concatenate([values for by_task in found.values() for values in by_task.values()])
    thresholds = np.linspace(min(0.0, float(everything.min())), float(everything.max()) * 1.02, NUM_POINTS)
    curves = []
    for label, by_task in found.items():
        strata = list(by_task.values())
        low = high = np.full(NUM_POINTS, np.nan)
        if min(map(len, strata)) >= MIN_RUNS:
            rng = bootstrap.generator(settings.seed, label, "profile")
            draws = bootstrap.bootstrap(strata, rng, settings.num_resamples)
            low, high = bootstrap.percentiles(bootstrap.performance_profile(draws, thresholds), settings.confidence)
        mean = bootstrap.performance_profile(strata, thresholds)
        curves.append(Series(label, thresholds, mean, low, high, (), min(map(len, strata))))
    title = "all tasks" if len({group.task for group in groups}) > 1 else groups[0].task
    x_label = f"normalized score  (1: {baseline_name(groups, settings)})"
    return (Panel("", x_label, "share of runs above it", tuple(curves), title=title),)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """One panel."""
    return draw_panels(panels, lines, x_axis=lambda axes: None, y_limits=(-0.03, 1.03), height=2.8)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Share of runs whose normalized score exceeds x, mean over tasks; the score is that of the table over all tasks."
    return f"{what} {band_text(settings).capitalize()}."
