"""Dependence of the KL-spike rate on the threshold that defines a spike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures import series
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel, interval_text
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import KL
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.tables.summary import spike_rates

COLUMNS = (KL,)
SCALES = ("linear y axis",)


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel per task with the percentage of updates above each threshold."""
    thresholds = np.array(settings.thresholds)
    made = []
    for task in series.tasks(groups):
        curves = []
        for group in groups:
            rates = 100 * spike_rates(group)
            if group.task == task and len(rates):
                seeds = tuple((thresholds, rate) for rate in rates)
                curves.append(series.over_seeds(group, "spikes", settings, thresholds, rates, seeds))
        if curves:
            made.append(Panel(task, series.with_unit("threshold", KL), "updates above it  [%]", tuple(curves)))
    return tuple(made)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples over a logarithmic threshold."""
    return draw_panels(panels, lines, log_x=True, y_limits=(-3, 103))


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Share of updates whose KL(old || new) exceeds a threshold; the tables use"
    return f"{what} {settings.spike_threshold:g} nats. {interval_text(panels, settings)}"
