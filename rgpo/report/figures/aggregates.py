"""Mean, interquartile mean and median of scores over all tasks, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from rgpo.report.figures import style
from rgpo.report.figures.drawing import draw_intervals
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import MIN_RUNS, Interval
from rgpo.report.tables.baseline import scores
from rgpo.report.tables.overall import SCORE, SHOWN, aggregates, baseline_name

COLUMNS = (TRAIN, PROXY)
SCALES = ("linear x axis",)


@dataclass(frozen=True)
class Aggregate:
    """One pair of axes: an aggregate for every label."""

    name: str
    found: dict[str, Interval]
    baseline: str


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Aggregate, ...]:
    """A panel per aggregate; none if no task has a baseline for normalization."""
    found = scores(groups, settings)
    if not found:
        return ()
    name = baseline_name(groups, settings)
    by_label = aggregates(found, name, settings)
    return tuple(Aggregate(key, {label: each[key] for label, each in by_label.items()}, name) for key in SHOWN)


def draw(panels: Sequence[Aggregate], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Three panels in a row."""
    figure, all_axes = style.grid(len(panels), columns=3, height=0.5 + 0.2 * len(panels[0].found))
    for i, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
        draw_intervals(axes, panel.found, lines, level=1.0, names=i == 0)
        axes.set_title(panel.name)
        axes.set_xlabel("normalized score")
    return figure


def caption(panels: Sequence[Aggregate], settings: Settings) -> str:
    """The figure's caption."""
    what = f"{SCORE.format(baseline=panels[0].baseline).capitalize()} (gray line). Bars:"
    return f"{what} {100 * settings.confidence:g} % bootstrap stratified by task and arm, none below {MIN_RUNS} seeds."
