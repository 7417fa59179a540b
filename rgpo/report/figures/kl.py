"""KL(old || new) of each update, with the spike threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgpo.report import style
from rgpo.report.figures import series
from rgpo.report.figures.series import Panel, draw_series
from rgpo.report.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.style import Line

KL = "kl/old_exact"
COLUMNS = (KL,)
THRESHOLD = "kl_spike_threshold"
THRESHOLD_DASHES = (0, (2, 2))


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel a task with the thresholds that its runs were configured with."""
    panels = []
    for panel in series.panels(groups, KL, settings, y_label="KL(old || new)  [nats]", window=settings.smoothing):
        runs = [run for group in groups if group.task == panel.task for run in group.runs]
        levels = {float(run.config[THRESHOLD]) for run in runs if run.config.get(THRESHOLD) is not None}
        panels.append(replace(panel, levels=tuple(sorted(levels))))
    return tuple(panels)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line]) -> Figure:
    """Small multiples on a logarithmic axis with one legend below."""
    figure, all_axes = style.grid(len(panels), columns=3 if len(panels) > 4 else 2, height=2.5)
    for axes, panel in zip(all_axes, panels, strict=True):
        for i, curve in enumerate(panel.series):
            draw_series(axes, curve, lines[curve.label], order=i, count=len(panel.series))
        for level in panel.levels:
            axes.axhline(level, color=style.BLACK, linewidth=0.8, linestyle=THRESHOLD_DASHES, zorder=2.5)
        style.log_axis(axes)
        axes.set_title(panel.task)
        axes.set_ylabel(panel.y_label)
        axes.set_xlabel("update")
        style.update_axis(axes)
    levels = sorted({level for panel in panels for level in panel.levels})
    text = f"spike threshold {', '.join(f'{level:g}' for level in levels)} nats"
    extra = [Line2D([], [], color=style.BLACK, linewidth=0.8, linestyle=THRESHOLD_DASHES, label=text)] if levels else []
    style.legend_below(figure, {label: lines[label] for label in series.labels(panels)}, extra)
    return figure


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """What the figure shows."""
    what = "KL(old || new) in closed form, mean over the batch's states, after each update's last epoch (log axis)."
    return f"{what} {series.interval_text(panels, settings, settings.smoothing)}"
