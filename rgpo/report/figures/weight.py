"""How much of each update's batch the gate let through: relative weight and effective sample size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rgpo.report.figures import pairs
from rgpo.report.figures.series import Panel, interval_text
from rgpo.report.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.style import Line

Y_LABELS = {
    "weight/relative_mean": "mean of w / w(1)",
    "ess/ratio": "effective sample size\nof the ratios / n",
}
COLUMNS = tuple(Y_LABELS)


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """Two panels a task: relative weight, effective sample size."""
    return pairs.compute(groups, settings, Y_LABELS, settings.smoothing)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line]) -> Figure:
    """Rows of two panels; the grey line is 1, where nothing is rejected."""
    return pairs.draw(panels, lines, log=False, level=1.0)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """What the figure shows."""
    what = "Left: mean of w / w(1) over the batch; right: effective sample size (sum r)^2 / sum r^2 / n of the ratios,"
    text = interval_text(panels, settings, settings.smoothing)
    return f"{what} both after the last epoch of each update; grey: 1. {text}"
