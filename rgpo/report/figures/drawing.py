"""Drawing of curves over seeds, intervals per label, and stacked phases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from rgpo.report.figures import style
from rgpo.report.figures.series import XY, Panel, Series, labels
from rgpo.report.figures.style import Line
from rgpo.report.stats.bootstrap import Interval

LEVEL_DASHES = (0, (2, 2))
MAX_THIN = 5  # most seeds of a line that are drawn individually
PHASE_LOOKS = {  # phase -> shade and hatch, since colors identify algorithms
    "collect": ("#4D4D4D", ""),
    "update": ("#B3B3B3", ""),
    "diagnostics": ("#E0E0E0", "////"),
    "gradvar": ("#FFFFFF", "...."),
    "evaluate": ("#8C8C8C", "xxxx"),
}


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
    """Small multiples with one legend below; `columns` 0: two columns, or three if there are many panels."""
    figure, all_axes = style.grid(len(panels), columns=columns or (3 if len(panels) > 4 else 2), height=height)
    for axes, panel in zip(all_axes, panels, strict=True):
        draw_panel(axes, panel, lines)
        if not panel.series:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=style.GRAY)
            continue
        if log_x:
            style.log_axis(axes, "x")
        else:
            x_axis(axes)
        if log_y:
            style.log_axis(axes)
        if y_limits:
            axes.set_ylim(*y_limits)
    style.legend_below(figure, {label: lines[label] for label in labels(panels)}, extra)
    return figure


def draw_panel(axes: Axes, panel: Panel, lines: Mapping[str, Line]) -> None:
    """Every series of a panel, its reference lines, title and axis labels."""
    for i, curve in enumerate(panel.series):
        draw_series(axes, curve, lines[curve.label], order=i, count=len(panel.series))
    for level in panel.levels:
        axes.axhline(level, color=style.GRAY, linewidth=0.8, linestyle=LEVEL_DASHES, zorder=2.5)
    axes.set_title(panel.title or panel.task)
    axes.set_ylabel(panel.y_label)
    axes.set_xlabel(panel.x_label)


def draw_series(axes: Axes, series: Series, line: Line, *, order: int, count: int) -> None:
    """Draw thin seeds, band and mean; `count` series have markers at different points, to be distinguishable without color."""
    draw_seeds(axes, series.seeds, series.label, line)
    if series.marks is not None:
        marks = axes.plot(
            *series.marks, linestyle="none", marker="|", markersize=4, markeredgewidth=0.6, color=line.color, zorder=2.4
        )
        marks[0].set_gid(f"band:{series.label}")
    if np.isfinite(series.low).any():
        area = axes.fill_between(series.x, series.low, series.high, color=line.color, alpha=0.13, linewidth=0, zorder=2.2)
        area.set_gid(f"band:{series.label}")
    num_points = len(series.x)
    step = max(1, num_points // 6)
    start = int(step * (order + 0.5) / count) if step > 1 else 0
    (mean,) = axes.plot(
        series.x,
        series.mean,
        zorder=3,
        color=line.color,
        linestyle=line.dashes,
        marker=line.marker,
        markevery=(start, step),
    )
    mean.set_gid(f"mean:{series.label}")


def draw_seeds(axes: Axes, seeds: Sequence[XY], label: str, line: Line) -> None:
    """Draw the first few seeds as thin lines."""
    points = [np.column_stack(xy) for xy in seeds[:MAX_THIN]]
    thin = LineCollection(points, colors=line.color, linewidths=0.45, alpha=0.35, zorder=2, gid=f"seed:{label}")
    if points:
        axes.add_collection(thin)


def draw_intervals(axes: Axes, found: Mapping[str, Interval], lines: Mapping[str, Line], *, level: float, names: bool) -> None:
    """Draw a marker with its interval for each label, from top to bottom, and a vertical reference line at `level`."""
    axes.axvline(level, color=style.GRAY, linewidth=0.8, linestyle=LEVEL_DASHES, zorder=1)
    for place, (label, interval) in enumerate(found.items()):
        line, y = lines[label], len(found) - 1 - place
        (bar,) = axes.plot(
            [interval.low, interval.high],
            [y, y],
            alpha=0.55,
            color=line.color,
            linewidth=2.2,
            linestyle="-",
            solid_capstyle="butt",
        )
        (point,) = axes.plot(interval.value, y, color=line.color, marker=line.marker, markersize=5, linestyle="none")
        bar.set_gid(f"band:{label}")
        point.set_gid(f"mean:{label}")
    axes.set_yticks(range(len(found)), list(found)[::-1] if names else [""] * len(found))
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(axis="y", visible=False)


def draw_phases(axes: Axes, y: float, values: Mapping[str, float]) -> list[Rectangle]:
    """Draw a horizontal bar of stacked phases and return its parts."""
    left, parts = 0.0, []
    for phase, value in values.items():
        color, hatch = PHASE_LOOKS[phase]
        bar = axes.barh(y, value, 0.7, left, color=color, hatch=hatch, edgecolor=style.BLACK, linewidth=0.4)
        parts.append(bar.patches[0])
        left += value
    axes.grid(axis="y", visible=False)
    return parts


def phase_legend(figure: Figure, phases: Sequence[str]) -> None:
    """Add a legend for the phases' shades and hatches."""
    looks = {phase: PHASE_LOOKS[phase] for phase in phases}
    patches = [
        Patch(facecolor=color, hatch=hatch, edgecolor=style.BLACK, linewidth=0.4, label=phase)
        for phase, (color, hatch) in looks.items()
    ]
    style.legend_below(figure, {}, patches)
