"""Reward against KL to the reference: what each algorithm buys for how much drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpo.report.figures import style
from rgpo.report.figures.drawing import draw_seeds
from rgpo.report.figures.series import XY, tasks
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.read.load import Run
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap as stats
from rgpo.report.stats.bootstrap import Floats
from rgpo.report.tables.overall import Interval
from rgpo.report.tables.summary import GOLD, KL_REF, PROXY

COLUMNS = (KL_REF, PROXY, GOLD)
SCALES = ("linear x axis", "log x axis")
Y_LABELS = {PROXY: "proxy reward,\nchange against the reference", GOLD: "gold reward,\nchange against the reference"}


@dataclass(frozen=True)
class Path:
    """One algorithm's way: mean over seeds (E,) at the evaluations that all have, every seed, and the end's intervals."""

    label: str
    kl: Floats
    reward: Floats
    seeds: tuple[XY, ...]
    end_kl: Interval
    end_reward: Interval
    num_seeds: int


@dataclass(frozen=True)
class Plane:
    """One pair of axes."""

    task: str
    y_label: str
    series: tuple[Path, ...]


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Plane, ...]:
    """A panel a task and judge (proxy, gold)."""
    planes = []
    for task in tasks(groups):
        for column, text in Y_LABELS.items():
            found = (path(group, column, settings) for group in groups if group.task == task)
            paths = tuple(p for p in found if p is not None)
            if paths:
                planes.append(Plane(task, text, paths))
    return tuple(planes)


def path(group: Group, column: str, settings: Settings) -> Path | None:
    """The way of one group; None if no run has both measures."""
    runs = [run for run in group.used if run.has(column) and run.has(KL_REF)]
    if not runs:
        return None
    curves = [_points(run, column) for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    points = np.array([[(0.0, 0.0), *(curve[i] for i in common)] for curve in curves])  # (S, 1 + E, 2), the reference first
    kl, reward = points.mean(axis=0).T
    ends = [_end(group, name, settings) for name in (KL_REF, column)]
    return Path(group.label, kl, reward, tuple((p[:, 0], p[:, 1]) for p in points), ends[0], ends[1], len(runs))


def _points(run: Run, column: str) -> dict[float, tuple[float, float]]:
    """Iteration -> (KL, reward) of every evaluation."""
    both = run.curve("iteration"), run.curve(KL_REF), run.curve(column)
    return {i: (kl, reward) for i, kl, reward in zip(*map(list, both), strict=True) if not np.isnan(kl + reward)}


def _end(group: Group, column: str, settings: Settings) -> Interval:
    values = group.values(column, "final")
    if values.size < stats.MIN_RUNS:
        return Interval(float(values.mean()) if values.size else np.nan, np.nan, np.nan)
    draws = stats.bootstrap([values], stats.generator(settings.seed, group.task, group.label, column), settings.num_resamples)
    low, high = stats.percentiles(stats.aggregate_mean(draws), settings.confidence)
    return Interval(float(values.mean()), float(low), float(high))


def draw(planes: Sequence[Plane], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Rows of two panels: proxy and gold."""
    figure, all_axes = style.grid(len(planes), columns=2, height=2.6)
    for axes, plane in zip(all_axes, planes, strict=True):
        axes.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
        for way in plane.series:
            draw_path(axes, way, lines[way.label])
        axes.set_title(plane.task)
        axes.set_xlabel("KL(policy || reference)  [nats per completion]")
        axes.set_ylabel(plane.y_label)
        if scale == SCALES[1]:
            style.log_scale(axes, "x")
    style.legend_below(figure, {way.label: lines[way.label] for plane in planes for way in plane.series})
    return figure


def draw_path(axes: Axes, way: Path, line: Line) -> None:
    """Thin seeds, the mean's way with few markers, and a cross of the end's intervals."""
    draw_seeds(axes, way.seeds, way.label, line)
    step = max(1, len(way.kl) // 5)
    look: dict[str, Any] = {"color": line.color, "linestyle": line.dashes, "marker": line.marker, "markevery": step}
    axes.plot(way.kl, way.reward, zorder=3, gid=f"mean:{way.label}", **look)
    across, up = way.end_kl, way.end_reward
    bars: dict[str, Any] = {"color": line.color, "linewidth": 2.0, "alpha": 0.6, "zorder": 2.8, "gid": f"band:{way.label}"}
    axes.plot([across.low, across.high], [up.value, up.value], **bars)
    axes.plot([across.value, across.value], [up.low, up.high], **bars)


def caption(planes: Sequence[Plane], settings: Settings) -> str:
    """What the figure shows."""
    what = "Change of the reward against the reference policy over KL to it, on the same held-out prompts, as training goes on"
    ends = f"Crosses: {100 * settings.confidence:g} % bootstrap intervals of both means at the end."
    better = "Higher and further left is better; gold is a judge that training never saw."
    return f"{what} (thick: mean over seeds; thin: at most 5 of them). {ends} {better}"
