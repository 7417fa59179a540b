"""Metrics declared in the runs' own configs, and those of the reward terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rgpo.report.figures import series
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.runtime.schema import Metric, is_list

COLUMNS = ()  # determined by the runs' configs
SCALES = ("linear y axis", "log y axis")


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel per metric and task; metrics under epoch/ are plotted against the epoch, others against the update."""
    declared: dict[str, Metric] = {}
    for group in groups:
        for run in group.runs:
            declared |= run.metrics
    made: list[Panel] = []
    for name, metric in sorted(declared.items()):
        y_label = f"{name}  [{metric.unit}]"
        if is_list(name):
            made += series.epoch_panels(groups, name, settings, y_label=y_label)
        else:
            made += series.panels(groups, name, settings, y_label=y_label, window=settings.smoothing)
    return tuple(made)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples with one legend below."""
    return draw_panels(panels, lines, log_y=scale == SCALES[1])


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Terms of the reward and metrics declared under `metrics` in the runs' own configs, with their units."
    return f"{what} {series.interval_text(panels, settings, settings.smoothing)}"
