"""How curves over seeds and intervals of labels are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgpo.report.figures import style
from rgpo.report.figures.series import XY, Panel, Series, labels
from rgpo.report.figures.style import Line
from rgpo.report.tables.overall import Interval

LEVEL_DASHES = (0, (2, 2))
MAX_THIN = 5  # seeds of a line drawn by themselves


def draw_panels(
    panels: Sequence[Panel],
    lines: Mapping[str, Line],
    *,
    log_x: bool = False,
    log_y: bool = False,
    columns: int = 0,
    height: float = 2.4,
    x_axis: Callable[[Axes], None] = style.update_axis,
    y_limits: tuple[float, float] | None = None,
    extra: Sequence[Line2D] = (),
) -> Figure:
    """Small multiples with one legend below; `columns` 0: two, or three where there are many panels."""
    figure, all_axes = style.grid(len(panels), columns=columns or (3 if len(panels) > 4 else 2), height=height)
    for axes, panel in zip(all_axes, panels, strict=True):
        for i, curve in enumerate(panel.series):
            draw_series(axes, curve, lines[curve.label], order=i, count=len(panel.series))
        for level in panel.levels:
            axes.axhline(level, color=style.GREY, linewidth=0.8, linestyle=LEVEL_DASHES, zorder=2.5)
        axes.set_title(panel.title or panel.task)
        axes.set_ylabel(panel.y_label)
        axes.set_xlabel(panel.x_label)
        if not panel.series:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=style.GREY)
            continue
        if log_x:
            style.log_scale(axes, "x")
        else:
            x_axis(axes)
        if log_y:
            style.log_axis(axes)
        if y_limits:
            axes.set_ylim(*y_limits)
    style.legend_below(figure, {label: lines[label] for label in labels(panels)}, extra)
    return figure


def draw_series(axes: Axes, series: Series, line: Line, *, order: int, count: int, band: float = 0.13) -> None:
    """Thin seeds, band, mean. Each of `count` series has its markers elsewhere, so that grey print can be read."""
    draw_seeds(axes, series.seeds, series.label, line)
    if series.marks is not None:
        marks = axes.plot(
            *series.marks, linestyle="none", marker="|", markersize=4, markeredgewidth=0.6, color=line.color, zorder=2.4
        )
        marks[0].set_gid(f"band:{series.label}")
    if np.isfinite(series.low).any():
        area = axes.fill_between(series.x, series.low, series.high, color=line.color, alpha=band, linewidth=0, zorder=2.2)
        area.set_gid(f"band:{series.label}")
    num_points = len(series.x)
    step = max(1, num_points // 6)
    start = int(step * (order + 0.5) / count) if step > 1 else 0
    look: dict[str, Any] = {"color": line.color, "linestyle": line.dashes, "marker": line.marker, "markevery": (start, step)}
    (mean,) = axes.plot(series.x, series.mean, zorder=3, **look)
    mean.set_gid(f"mean:{series.label}")


def draw_seeds(axes: Axes, seeds: Sequence[XY], label: str, line: Line) -> None:
    """Thin lines of the first few seeds, if there are any."""
    points = [np.column_stack(xy) for xy in seeds[:MAX_THIN]]
    thin = LineCollection(points, colors=line.color, linewidths=0.45, alpha=0.35, zorder=2, gid=f"seed:{label}")
    if points:
        axes.add_collection(thin)


def draw_intervals(axes: Axes, found: Mapping[str, Interval], lines: Mapping[str, Line], *, level: float, names: bool) -> None:
    """A marker with its interval for each label, from top to bottom; `level` is a vertical reference line."""
    axes.axvline(level, color=style.GREY, linewidth=0.8, linestyle=LEVEL_DASHES, zorder=1)
    for place, (label, interval) in enumerate(found.items()):
        line, y = lines[label], len(found) - 1 - place
        look: dict[str, Any] = {"color": line.color, "linewidth": 2.2, "linestyle": "-", "solid_capstyle": "butt"}
        (bar,) = axes.plot([interval.low, interval.high], [y, y], alpha=0.55, **look)
        (point,) = axes.plot(interval.value, y, color=line.color, marker=line.marker, markersize=5, linestyle="none")
        bar.set_gid(f"band:{label}")
        point.set_gid(f"mean:{label}")
    axes.set_yticks(range(len(found)), list(found)[::-1] if names else [""] * len(found))
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(axis="y", visible=False)
