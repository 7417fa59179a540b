"""Tails of the probability ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures import series, style
from rgpo.report.figures.drawing import draw_panel
from rgpo.report.figures.series import Panel, Series
from rgpo.report.figures.style import Line
from rgpo.report.read.columns import RATIO_MAX
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import survival

INDEX = "ratio/tail_index"
COLUMNS = (RATIO_MAX, INDEX)
SCALES = ("log-log axes",)


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """Two panels per task: survival function of each update's largest ratio, and Hill's tail index over updates."""
    made = []
    indices = {p.task: p for p in series.panels(groups, INDEX, settings, y_label="Hill's tail index", window=settings.smoothing)}
    for task in series.tasks(groups):
        curves = tuple(_survival(group) for group in groups if group.task == task and any(r.has(RATIO_MAX) for r in group.used))
        if curves:
            made.append(Panel(task, "largest ratio of an update, x", "share of updates above x", curves))
            made.append(replace(indices.get(task, Panel(task, "update", "Hill's tail index", ())), levels=(2.0,)))
    return tuple(made)


def _survival(group: Group) -> Series:
    """P(an update's largest ratio >= x) over the updates of all seeds, and of each seed."""
    each = [run.reduced.ratio_quantiles for run in group.used if run.has(RATIO_MAX)]
    x, share = (values[:: len(each)] for values in survival(np.concatenate(each)))
    nothing = np.full(len(x), np.nan)
    return Series(group.label, x, share, nothing, nothing, tuple(survival(values) for values in each), len(each))


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Rows of two panels; all axes are logarithmic except the update."""
    figure, all_axes = style.grid(len(panels), columns=2, height=2.2)
    for place, (axes, panel) in enumerate(zip(all_axes, panels, strict=True)):
        draw_panel(axes, panel, lines)
        if panel.series and place % 2 == 0:
            style.log_scale(axes, "x", "y")
        elif panel.series:
            style.update_axis(axes)
            style.log_axis(axes)
    style.legend_below(figure, {label: lines[label] for label in series.labels(panels)})
    return figure


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Left: share of updates whose largest ratio new/old after the last epoch exceeds x, over all seeds (thick, from"
    more = "up to 200 quantiles per seed) and for single seeds (thin); a straight line is a power law. Right: Hill's estimate of"
    right = "the ratios' tail index over the top 5 % of a batch; at or below the gray line, 2, importance sampling has infinite"
    return f"{what} {more} {right} variance. {series.interval_text(panels[1::2], settings, settings.smoothing)}"
