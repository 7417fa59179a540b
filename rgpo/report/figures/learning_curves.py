"""Return against environment steps, or reward against updates, one panel per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures import series, style
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import EVAL, PROXY, REWARD, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.read.run import Run
from rgpo.report.settings import Settings

COLUMNS = (EVAL, TRAIN, PROXY, REWARD)
SCALES = ("linear x axis", "log x axis")
MIN_EVALUATIONS = 3  # least number of evaluations of a run that make a curve
Y_LABELS = {
    EVAL: "evaluation return",
    TRAIN: "training return",
    PROXY: "proxy reward, change\nagainst the reference",
    REWARD: "training reward (proxy)",
}


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel per task: evaluation values if every group has enough of them for a curve, else training values."""
    made: list[Panel] = []
    for task in series.tasks(groups):
        members = [group for group in groups if group.task == task]
        language = members[0].language
        held_out, training = (PROXY, REWARD) if language else (EVAL, TRAIN)
        column = held_out if all(any(_has_curve(run, held_out) for run in group.runs) for group in members) else training
        x = "iteration" if language else "env_steps"
        made += series.panels(members, column, settings, y_label=Y_LABELS[column], x=x)
    return tuple(made)


def _has_curve(run: Run, column: str) -> bool:
    return int(np.sum(~np.isnan(run.curve(column)))) >= MIN_EVALUATIONS


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples with one legend below."""
    return draw_panels(panels, lines, log_x=scale == SCALES[1], x_axis=style.count_axis)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    kinds = sorted({panel.y_label.replace("\n", " ") for panel in panels})
    return f"Raw, undiscounted {' or '.join(kinds)}, in units of reward. {series.interval_text(panels, settings)}"
