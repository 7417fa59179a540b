"""Proxy and gold reward over KL: overoptimization of the reward model (Gao et al. 2022, arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgpo.report.figures import style
from rgpo.report.figures.frontier import Plane, Trajectory, draw_trajectory, trajectory
from rgpo.report.figures.series import tasks
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import GOLD, KL_REF, PROXY
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings

COLUMNS = (KL_REF, PROXY, GOLD)
SCALES = ("linear x axis", "log x axis")
LOOKS = {"proxy, used in training": Line(style.GRAY, style.SOLID, "o"), "gold": Line(style.GRAY, style.DASHED, "s")}


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Plane, ...]:
    """A panel per task and algorithm: proxy, then gold."""
    planes = []
    for task in tasks(groups):
        for group in (group for group in groups if group.task == task):
            pair = [trajectory(group, column, settings) for column in (PROXY, GOLD)]
            curves: tuple[Trajectory, ...] = tuple(curve for curve in pair if curve is not None)
            if len(curves) == 2:
                planes.append(Plane(task, "change of the reward", curves))
    return tuple(planes)


def draw(planes: Sequence[Plane], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples with common limits; proxy solid, gold dashed."""
    columns, height = (3, 1.9) if len(planes) <= style.MANY_PANELS else (5, 1.35)
    figure, all_axes = style.grid(len(planes), columns=columns, height=height)
    for i, (axes, plane) in enumerate(zip(all_axes, planes, strict=True)):
        axes.axhline(0, color=style.GRAY, linewidth=0.6, zorder=1)
        for curve, look in zip(plane.series, LOOKS.values(), strict=True):
            draw_trajectory(axes, curve, look._replace(color=lines[curve.label].color))
        axes.set_title(f"{plane.series[0].label}\n{plane.task}")
        axes.set_xlabel("KL to the reference\n[nats/completion]" if i + columns >= len(planes) else "")
        axes.set_ylabel(plane.y_label if i % columns == 0 else "")
        axes.tick_params(labelleft=i % columns == 0)  # shared limits
        if scale == SCALES[1]:
            style.log_scale(axes, "x")
    drawn = [point for axes in all_axes for point in (*axes.dataLim.get_points(), axes.dataLim.minpos)]
    for axes in all_axes:  # limits are set manually, since shared axes take quadratic time
        axes.update_datalim(drawn)
        axes.autoscale_view()
    handles = [
        Line2D([], [], color=look.color, linestyle=look.dashes, marker=look.marker, label=text) for text, look in LOOKS.items()
    ]
    style.legend_below(figure, {}, handles)
    return figure


def caption(planes: Sequence[Plane], settings: Settings) -> str:
    """The figure's caption."""
    what = "Change against the reference policy of the reward model that training maximizes (proxy, solid) and of one that it"
    more = "never uses (gold, dashed) over KL to the reference, held-out prompts, mean over seeds (thin: at most 5; crosses:"
    end = "intervals at the end, bars: at levels of KL that all runs reach, together). Where gold turns down while proxy still "
    end += "rises, the reward model is overoptimized."
    return f"{what} {more} {end}"
