"""Two metrics side by side, a row a task: the form that `weight` and `gradient_variance` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rgpo.report import style
from rgpo.report.figures import series
from rgpo.report.figures.series import Panel, draw_series
from rgpo.report.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.style import Line


def compute(groups: Sequence[Group], settings: Settings, y_labels: Mapping[str, str], window: int = 1) -> tuple[Panel, ...]:
    """For each task a panel for each metric (column -> y label), in that order; tasks without any are left out."""
    found = [series.panels(groups, column, settings, y_label=text, window=window) for column, text in y_labels.items()]
    by_place = {(panel.task, panel.y_label): panel for panels in found for panel in panels}
    tasks = sorted({task for task, _ in by_place})
    return tuple(by_place.get((t, text), Panel(t, text, ())) for t in tasks for text in y_labels.values())


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], *, log: bool, level: float | None = None) -> Figure:
    """Rows of two panels with one legend below; `level` is a reference line."""
    figure, all_axes = style.grid(len(panels), columns=2, height=2.1)
    for place, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
        for i, curve in enumerate(panel.series):
            draw_series(axes, curve, lines[curve.label], order=i, count=len(panel.series))
        if level is not None:
            axes.axhline(level, color=style.GREY, linewidth=0.6, zorder=1)
        if log and panel.series:
            style.log_axis(axes)
        axes.set_title(panel.task)
        axes.set_ylabel(panel.y_label)
        axes.set_xlabel("update" if place >= len(panels) - 2 else "")
        if panel.series:
            style.update_axis(axes)
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=style.GREY)
    style.legend_below(figure, {label: lines[label] for label in series.labels(panels)})
    return figure
