"""Return against environment steps, a panel a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rgpo.report import style
from rgpo.report.figures.series import Panel, draw_series, interval_text, labels, over_iterations, tasks
from rgpo.report.groups import Group
from rgpo.report.load import Run
from rgpo.report.settings import Settings
from rgpo.report.style import Line

EVAL, TRAIN = "return/eval_mean", "return/train_mean"
COLUMNS = (EVAL, TRAIN)
MIN_EVALUATIONS = 3  # of a run; fewer make no curve
Y_LABELS = {EVAL: "evaluation return", TRAIN: "training return"}


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel a task: evaluation returns if every group has enough of them for a curve, else training returns."""
    panels = []
    for task in tasks(groups):
        members = [group for group in groups if group.task == task]
        column = EVAL if all(any(_has_curve(run) for run in group.runs) for group in members) else TRAIN
        found = (over_iterations(group, column, settings, x="env_steps") for group in members)
        series = tuple(s for s in found if s is not None)
        if series:
            panels.append(Panel(task, Y_LABELS[column], series))
    return tuple(panels)


def _has_curve(run: Run) -> bool:
    return run.has(EVAL) and int(np.sum(~np.isnan(run.columns[EVAL]))) >= MIN_EVALUATIONS


def draw(panels: Sequence[Panel], lines: Mapping[str, Line]) -> Figure:
    """Small multiples with one legend below."""
    figure, all_axes = style.grid(len(panels), columns=3 if len(panels) > 4 else 2, height=2.5)
    for axes, panel in zip(all_axes, panels, strict=True):
        for i, series in enumerate(panel.series):
            draw_series(axes, series, lines[series.label], order=i, count=len(panel.series))
        axes.set_title(panel.task)
        axes.set_ylabel(panel.y_label)
        axes.set_xlabel("environment steps")
        style.count_axis(axes)
    style.legend_below(figure, {label: lines[label] for label in labels(panels)})
    return figure


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """What the figure shows."""
    kinds = sorted({panel.y_label for panel in panels})
    what = f"Raw, undiscounted {' or '.join(kinds)} (reward) against environment steps."
    return f"{what} {interval_text(panels, settings)}"
