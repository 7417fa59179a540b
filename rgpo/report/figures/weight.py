"""The share of each update's batch that passes the gate: relative weight and effective sample size of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from rgpo.report.figures import series
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings

Y_LABELS = {"weight/relative_mean": "mean of w / w(1)", "ess/weight": "effective sample size\nof the weights / n"}
COLUMNS = tuple(Y_LABELS)
SCALES = ("linear y axis", "log y axis")


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """Two panels per task: relative weight, effective sample size."""
    return tuple(replace(panel, levels=(1.0,)) for panel in series.rows(groups, settings, Y_LABELS, settings.smoothing))


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Rows of two panels; the gray line at 1 means that nothing is rejected."""
    return draw_panels(panels, lines, log_y=scale == SCALES[1], columns=2, height=2.1)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Left: mean of w / w(1) over the batch; right: effective sample size (sum w)^2 / sum w^2 / n of the weights,"
    text = series.interval_text(panels, settings, settings.smoothing)
    return f"{what} both after the last epoch of each update; gray: 1, where nothing is rejected. {text}"
