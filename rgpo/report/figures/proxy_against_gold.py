"""Proxy against gold over KL: where the reward model is being gamed (after Gao et al. 2022, arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgpo.report.figures import style
from rgpo.report.figures.frontier import Path, Plane, draw_path, path
from rgpo.report.figures.series import tasks
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.tables.summary import GOLD, KL_REF, PROXY

COLUMNS = (KL_REF, PROXY, GOLD)
SCALES = ("linear x axis", "log x axis")


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Plane, ...]:
    """A panel a task and algorithm: proxy, then gold."""
    planes = []
    for task in tasks(groups):
        for group in (group for group in groups if group.task == task):
            pair = [path(group, column, settings) for column in (PROXY, GOLD)]
            ways: tuple[Path, ...] = tuple(way for way in pair if way is not None)
            if len(ways) == 2:
                planes.append(Plane(task, "change of the reward", ways))
    return tuple(planes)


def draw(planes: Sequence[Plane], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples with common axes: solid proxy, dashed gold."""
    columns, height = (3, 1.9) if len(planes) <= style.MANY_PANELS else (5, 1.35)
    figure, all_axes = style.grid(len(planes), columns=columns, height=height)
    for i, (axes, plane) in enumerate(zip(all_axes, planes, strict=True)):
        axes.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
        for way, dashes, marker in zip(plane.series, (style.SOLID, style.DASHED), ("o", "s"), strict=True):
            draw_path(axes, way, Line(lines[way.label].color, dashes, marker))
        axes.set_title(f"{plane.series[0].label}\n{plane.task}")
        axes.set_xlabel("KL to the reference\n[nats/completion]" if i + columns >= len(planes) else "")
        axes.set_ylabel(plane.y_label if i % columns == 0 else "")
        axes.tick_params(labelleft=i % columns == 0)  # the limits are common
        if scale == SCALES[1]:
            style.log_scale(axes, "x")
    drawn = [point for axes in all_axes for point in (*axes.dataLim.get_points(), axes.dataLim.minpos)]
    for axes in all_axes:  # common limits; shared axes take time that is quadratic in their number
        axes.update_datalim(drawn)
        axes.autoscale_view()
    looks: dict[str, tuple[Any, str]] = {"proxy, which is trained on": (style.SOLID, "o"), "gold": (style.DASHED, "s")}
    handles = [Line2D([], [], color=style.GREY, linestyle=d, marker=m, label=text) for text, (d, m) in looks.items()]
    style.legend_below(figure, {}, handles)
    return figure


def caption(planes: Sequence[Plane], settings: Settings) -> str:
    """What the figure shows."""
    what = (
        "Change against the reference policy of the reward model that training climbs (proxy, solid) and of a judge it never saw"
    )
    more = (
        "(gold, dashed) over KL to the reference, held-out prompts, mean over seeds (thin: at most 5 of them; crosses: intervals"
    )
    return f"{what} {more} at the end). Where gold turns down while proxy still rises, the reward model is being gamed."
