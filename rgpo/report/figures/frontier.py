"""Reward against KL to the reference policy: what each algorithm gains for its drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgpo.report.figures import style
from rgpo.report.figures.drawing import draw_seeds
from rgpo.report.figures.series import XY, tasks, with_unit
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import GOLD, KL_REF, PROXY
from rgpo.report.read.groups import Group
from rgpo.report.read.run import Run
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap
from rgpo.report.stats.bootstrap import Floats, Interval
from rgpo.report.tables.matched import LEVELS, at_levels

COLUMNS = (KL_REF, PROXY, GOLD)
SCALES = ("linear x axis", "log x axis")
Y_LABELS = {PROXY: "proxy reward,\nchange against the reference", GOLD: "gold reward,\nchange against the reference"}


@dataclass(frozen=True)
class Trajectory:
    """One algorithm's curve: the mean over seeds (E,) at the evaluations common to all, the seeds, and intervals.

    Intervals are given for the reward at a few levels of KL that all seeds reach, and for reward and KL at the end.
    """

    label: str
    kl: Floats
    reward: Floats
    seeds: tuple[XY, ...]
    end_kl: Interval
    end_reward: Interval
    levels: tuple[tuple[float, Interval], ...] = ()  # (KL, reward), with simultaneous intervals


@dataclass(frozen=True)
class Plane:
    """One pair of axes."""

    task: str
    y_label: str
    series: tuple[Trajectory, ...]


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Plane, ...]:
    """A panel per task and reward model (proxy, gold)."""
    planes = []
    for task in tasks(groups):
        for column, text in Y_LABELS.items():
            found = (trajectory(group, column, settings) for group in groups if group.task == task)
            curves = tuple(curve for curve in found if curve is not None)
            if curves:
                planes.append(Plane(task, text, curves))
    return tuple(planes)


def trajectory(group: Group, column: str, settings: Settings) -> Trajectory | None:
    """The curve of one group; None if no run measured both reward and KL."""
    runs = [run for run in group.used if run.has(column) and run.has(KL_REF)]
    if not runs:
        return None
    curves = [_points(run, column) for run in runs]
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    points = np.array([[(0.0, 0.0), *(curve[i] for i in common)] for curve in curves])  # (S, 1 + E, 2), reference first
    kl, reward = points.mean(axis=0).T
    ends = [_end(group, name, settings) for name in (KL_REF, column)]
    seeds = tuple((p[:, 0], p[:, 1]) for p in points)
    return Trajectory(group.label, kl, reward, seeds, ends[0], ends[1], tuple(at_levels(seeds, LEVELS, settings.confidence)))


def _points(run: Run, column: str) -> dict[float, tuple[float, float]]:
    """Iteration -> (KL, reward) for every evaluation."""
    both = run.path("iteration"), run.path(KL_REF), run.path(column)
    return {i: (kl, reward) for i, kl, reward in zip(*map(list, both), strict=True) if not np.isnan(kl + reward)}


def _end(group: Group, column: str, settings: Settings) -> Interval:
    values, rng = group.values(column, "final"), bootstrap.generator(settings.seed, group.task, group.label, column)
    mean, num_resamples, confidence = bootstrap.aggregate_mean, settings.num_resamples, settings.confidence
    return bootstrap.estimate([values], mean, rng, num_resamples=num_resamples, confidence=confidence)


def draw(planes: Sequence[Plane], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Rows of two panels: proxy and gold."""
    figure, all_axes = style.grid(len(planes), columns=2, height=2.6)
    for axes, plane in zip(all_axes, planes, strict=True):
        axes.axhline(0, color=style.GRAY, linewidth=0.6, zorder=1)
        for curve in plane.series:
            draw_trajectory(axes, curve, lines[curve.label])
        axes.set_title(plane.task)
        axes.set_xlabel(with_unit("KL(policy || reference)", KL_REF))
        axes.set_ylabel(plane.y_label)
        if scale == SCALES[1]:
            style.log_scale(axes, "x")
    style.legend_below(figure, {curve.label: lines[curve.label] for plane in planes for curve in plane.series})
    return figure


def draw_trajectory(axes: Axes, curve: Trajectory, line: Line) -> None:
    """Draw thin seeds, the mean with a few markers, and a cross with the intervals at the end."""
    draw_seeds(axes, curve.seeds, curve.label, line)
    axes.plot(
        curve.kl,
        curve.reward,
        zorder=3,
        gid=f"mean:{curve.label}",
        color=line.color,
        linestyle=line.dashes,
        marker=line.marker,
        markevery=max(1, len(curve.kl) // 5),
    )
    kl, reward = curve.end_kl, curve.end_reward
    for x, y in (([kl.low, kl.high], [reward.value] * 2), ([kl.value] * 2, [reward.low, reward.high])):
        axes.plot(x, y, color=line.color, linewidth=2.0, alpha=0.6, zorder=2.8, gid=f"band:{curve.label}")
    for level, found in curve.levels:
        axes.plot([level] * 2, [found.low, found.high], color=line.color, linewidth=0.8, zorder=2.7, gid=f"band:{curve.label}")


def caption(planes: Sequence[Plane], settings: Settings) -> str:
    """The figure's caption."""
    what = "Change of the reward against the reference policy over KL to it, on the same held-out prompts, during training"
    ends = f"Crosses: {100 * settings.confidence:g} % bootstrap intervals of both means at the end. Thin bars: the mean reward "
    ends += f"where the runs first reach a KL, at {LEVELS} levels that all reach, with intervals that hold together."
    better = "Higher and further left is better; gold is a reward model that training never uses."
    return f"{what} (thick: mean over seeds; thin: at most 5 of them). {ends} {better}"
