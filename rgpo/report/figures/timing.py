"""Where the wall time of an iteration goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rgpo.report.figures import style
from rgpo.report.figures.series import tasks
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.read.reduce import TIMES
from rgpo.report.settings import Settings

COLUMNS = TIMES
SCALES = ("linear x axis",)
LOOKS = {  # phase -> grey and hatch, since colours belong to algorithms
    "collect": ("#4D4D4D", ""),
    "update": ("#B3B3B3", ""),
    "diagnostics": ("#E0E0E0", "////"),
    "gradvar": ("#FFFFFF", "...."),
    "evaluate": ("#8C8C8C", "xxxx"),
}


@dataclass(frozen=True)
class Bars:
    """One pair of axes: label -> phase -> seconds."""

    task: str
    seconds: dict[str, dict[str, float]]


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Bars, ...]:
    """A panel a task: seconds of each phase in an iteration that has it, median over iterations, mean over seeds."""
    made = []
    for task in tasks(groups):
        seconds = {}
        for group in groups:
            found = {phase: group.values(column, "median") for phase, column in zip(LOOKS, TIMES, strict=True)}
            means = {phase: float(np.mean(values)) for phase, values in found.items() if values.size}
            if group.task == task and means:
                seconds[group.label] = means
        if seconds:
            made.append(Bars(task, seconds))
    return tuple(made)


def draw(panels: Sequence[Bars], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Stacked horizontal bars; a mark in the algorithm's colour beside its name."""
    figure, all_axes = style.grid(len(panels), columns=2, height=0.7 + 0.2 * max(len(panel.seconds) for panel in panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        for place, (label, seconds) in enumerate(reversed(panel.seconds.items())):
            left = 0.0
            for phase, value in seconds.items():
                color, hatch = LOOKS[phase]
                edge: dict[str, Any] = {"edgecolor": style.BLACK, "linewidth": 0.4}
                bar = axes.barh(place, value, 0.7, left, color=color, hatch=hatch, **edge)
                bar.patches[0].set_gid(f"mean:{label}")
                left += value
            axes.plot(0, place, color=lines[label].color, marker=lines[label].marker, clip_on=False, zorder=4)
        axes.set_yticks(range(len(panel.seconds)), list(reversed(panel.seconds)))
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_title(panel.task)
        axes.set_xlabel("seconds of an iteration")
    phases = [phase for phase in LOOKS if any(phase in seconds for panel in panels for seconds in panel.seconds.values())]
    patches = [Patch(facecolor=LOOKS[p][0], hatch=LOOKS[p][1], edgecolor=style.BLACK, linewidth=0.4, label=p) for p in phases]
    style.legend_below(figure, {}, patches)
    return figure


def caption(panels: Sequence[Bars], settings: Settings) -> str:
    """What the figure shows."""
    what = "Wall time of the phases of an iteration, median over iterations that have the phase (gradvar and evaluate are rarer"
    return f"{what} than the others), mean over seeds, on the machines of the provenance box, whatever else they did."
