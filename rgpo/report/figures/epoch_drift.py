"""Drift from the old policy within an update, which is where gates differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rgpo.report.figures import series
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings

DRIFT = "epoch/kl_old_exact"
COLUMNS = (DRIFT,)
SCALES = ("log y axis", "linear y axis")


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel per task: the mean over each run's iterations, per epoch."""
    return series.epoch_panels(groups, DRIFT, settings, y_label=series.with_unit("KL(old || new)", DRIFT))


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples with one legend below."""

    def whole(axes: Axes) -> None:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))

    return draw_panels(panels, lines, log_y=scale == SCALES[0], x_axis=whole)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "KL(old || new) on the whole batch after each epoch, mean over a run's iterations."
    return f"{what} An update without epochs is one point. {series.interval_text(panels, settings)}"
