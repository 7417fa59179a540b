"""Variance of the policy gradient and effective sample size of each measured update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rgpo.report.figures import series
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel, interval_text
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings

Y_LABELS = {
    "gradvar/before_noise_share": "share of noise\nin the batch gradient",
    "gradvar/before": "tr Σ of one sample",
    "ess/ratio": "effective sample size\nof the ratios / n",
}
COLUMNS = tuple(Y_LABELS)
SCALES = ("log y axis", "linear y axis")


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """Three panels per task: noise share, per-sample variance, effective sample size."""
    return series.rows(groups, settings, Y_LABELS)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Rows of three panels."""
    return draw_panels(panels, lines, log_y=scale == SCALES[0], columns=3, height=2.1)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Policy-gradient variance at each measured update's old parameters, from disjoint groups. Left: tr Sigma / n over the"
    what += " squared norm of the batch gradient, noise / (signal + noise), free of scale."
    more = "Middle: tr Sigma of one sample, which carries the gate's w(1)^2."
    right = "Right: effective sample size (sum r)^2 / sum r^2 / n of the ratios after the last epoch."
    return f"{what} {more} {right} {interval_text(panels, settings)}"
