"""Probability that a run of an algorithm beats a run of the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rgpo.report.figures import style
from rgpo.report.figures.aggregates import Aggregate
from rgpo.report.figures.drawing import draw_intervals
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.tables.baseline import scores
from rgpo.report.tables.overall import baseline_name, improvements

COLUMNS = (TRAIN, PROXY)
SCALES = ("linear x axis",)


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Aggregate, ...]:
    """One panel; none without a baseline or anything to compare with it."""
    name = baseline_name(groups, settings)
    found = improvements(scores(groups, settings), name, settings)
    return (Aggregate("probability of improvement", found, name),) if found else ()


def draw(panels: Sequence[Aggregate], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """One panel with a line at one half."""
    figure, (axes,) = style.grid(1, columns=1, height=0.6 + 0.22 * len(panels[0].found))
    draw_intervals(axes, panels[0].found, lines, level=0.5, names=True)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(f"P(a run's score > that of a run of {panels[0].baseline})")
    return figure


def caption(panels: Sequence[Aggregate], settings: Settings) -> str:
    """The figure's caption."""
    what = f"Probability that a run scores higher than a run of {panels[0].baseline} on the same task, ties count half, mean over"
    return f"{what} tasks. Bars: {100 * settings.confidence:g} % bootstrap stratified by task, none below {MIN_RUNS} seeds."
