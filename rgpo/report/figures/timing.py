"""Wall time of an iteration's phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures import style
from rgpo.report.figures.drawing import draw_phases, phase_legend
from rgpo.report.figures.series import tasks
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import PHASES, TIMES
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings

COLUMNS = tuple(TIMES.values())
SCALES = ("linear x axis",)


@dataclass(frozen=True)
class Bars:
    """One pair of axes: label -> phase -> seconds."""

    task: str
    seconds: dict[str, dict[str, float]]


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Bars, ...]:
    """A panel per task: seconds per phase, as the median over iterations that have it, averaged over seeds."""
    made = []
    for task in tasks(groups):
        seconds = {}
        for group in groups:
            found = {phase: group.values(column, "median") for phase, column in TIMES.items()}
            means = {phase: float(np.mean(values)) for phase, values in found.items() if values.size}
            if group.task == task and means:
                seconds[group.label] = means
        if seconds:
            made.append(Bars(task, seconds))
    return tuple(made)


def draw(panels: Sequence[Bars], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Stacked horizontal bars, with a marker in the algorithm's color next to its name."""
    figure, all_axes = style.grid(len(panels), columns=2, height=0.7 + 0.2 * max(len(panel.seconds) for panel in panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        for place, (label, seconds) in enumerate(reversed(panel.seconds.items())):
            for part in draw_phases(axes, place, seconds):
                part.set_gid(f"mean:{label}")
            axes.plot(0, place, color=lines[label].color, marker=lines[label].marker, clip_on=False, zorder=4)
        axes.set_yticks(range(len(panel.seconds)), list(reversed(panel.seconds)))
        axes.set_xlim(left=0)
        axes.set_title(panel.task)
        axes.set_xlabel("seconds per iteration")
    drawn = [phase for phase in PHASES if any(phase in seconds for panel in panels for seconds in panel.seconds.values())]
    phase_legend(figure, drawn)
    return figure


def caption(panels: Sequence[Bars], settings: Settings) -> str:
    """The figure's caption."""
    what = "Wall time of the phases of an iteration, median over iterations that have the phase (gradvar and evaluate are rarer"
    return f"{what} than the others), mean over seeds, on the machines named under Provenance, which may have had other work."
