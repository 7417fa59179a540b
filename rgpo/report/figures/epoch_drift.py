"""How far the policy drifts from the old one within an update: where gates differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpo.report import style
from rgpo.report.figures import series
from rgpo.report.figures.series import Panel, draw_series, over_epochs
from rgpo.report.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.style import Line

DRIFT = "epoch/kl_old_exact"
COLUMNS = (DRIFT,)


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel a task: the mean over each run's iterations, per epoch."""
    panels = []
    for task in series.tasks(groups):
        found = (over_epochs(group, DRIFT, settings) for group in groups if group.task == task)
        curves = tuple(curve for curve in found if curve is not None)
        if curves:
            panels.append(Panel(task, "KL(old || new)  [nats]", curves))
    return tuple(panels)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line]) -> Figure:
    """Small multiples on a logarithmic axis with one legend below."""
    figure, all_axes = style.grid(len(panels), columns=3 if len(panels) > 4 else 2, height=2.5)
    for axes, panel in zip(all_axes, panels, strict=True):
        for i, curve in enumerate(panel.series):
            draw_series(axes, curve, lines[curve.label], order=i, count=len(panel.series))
        style.log_axis(axes)
        axes.set_title(panel.task)
        axes.set_ylabel(panel.y_label)
        axes.set_xlabel("passes over the batch (epochs)")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    style.legend_below(figure, {label: lines[label] for label in series.labels(panels)})
    return figure


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """What the figure shows."""
    what = "KL(old || new) on the whole batch after each epoch, mean over a run's iterations (log axis)."
    return f"{what} An update without epochs is one point. {series.interval_text(panels, settings)}"
