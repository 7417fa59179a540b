"""KL(old || new) of each update, with spikes above the threshold marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgpo.report.figures import series, style
from rgpo.report.figures.drawing import LEVEL_DASHES, draw_panels
from rgpo.report.figures.series import XY, Panel
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import KL
from rgpo.report.read.groups import Group
from rgpo.report.read.reduce import LARGEST_KL
from rgpo.report.read.run import Run
from rgpo.report.settings import Settings

COLUMNS = (KL,)
SCALES = ("log y axis", "linear y axis")
MAX_MARKS = 60


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel per task, with updates above the threshold marked."""
    label = {(group.task, group.label): group for group in groups}
    made = []
    y_label = series.with_unit("KL(old || new)", KL)
    for panel in series.panels(groups, KL, settings, y_label=y_label, window=settings.smoothing):
        curves = []
        for curve in panel.series:
            runs = [run for run in label[panel.task, curve.label].used if run.has(KL)]
            curves.append(replace(curve, marks=_marks([_spikes(run, settings.spike_threshold) for run in runs])))
        made.append(replace(panel, series=tuple(curves), levels=(settings.spike_threshold,)))
    return tuple(made)


def _spikes(run: Run, threshold: float) -> XY:
    """The largest KL in each block of updates, if above the threshold."""
    largest = run.curve(LARGEST_KL)
    return run.curve("iteration")[largest > threshold], largest[largest > threshold]


def _marks(spikes: Sequence[XY]) -> XY:
    """Up to MAX_MARKS spikes from all seeds, spread evenly over updates."""
    x, y = (np.concatenate([np.empty(0), *values]) for values in (zip(*spikes, strict=True) if spikes else ((), ())))
    order = np.argsort(x, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), MAX_MARKS)).astype(int)]
    return x[chosen], y[chosen]


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples with one legend below."""
    text = f"spike threshold {panels[0].levels[0]:g} nats"
    extra = [Line2D([], [], color=style.GRAY, linewidth=0.8, linestyle=LEVEL_DASHES, label=text)]
    return draw_panels(panels, lines, log_y=scale == SCALES[0], extra=extra)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "KL(old || new) in closed form, mean over the batch, after each update's last epoch. Ticks: updates above"
    what += f" {settings.spike_threshold:g} nats (at most {MAX_MARKS} per line)."
    return f"{what} {series.interval_text(panels, settings, settings.smoothing)}"
