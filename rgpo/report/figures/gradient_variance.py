"""Variance of the policy gradient, at the parameters from which each measured update starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from rgpo.report.figures import pairs
from rgpo.report.figures.series import Panel, interval_text
from rgpo.report.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.style import Line

Y_LABELS = {
    "gradvar/before_relative": r"noise / signal  tr $\Sigma$ / n / $|g|^2$",
    "gradvar/before": r"tr $\Sigma$ of one sample",
}
COLUMNS = tuple(Y_LABELS)


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """Two panels a task: relative and absolute variance."""
    return pairs.compute(groups, settings, Y_LABELS)


def draw(panels: Sequence[Panel], lines: Mapping[str, Line]) -> Figure:
    """Rows of two panels on logarithmic axes."""
    return pairs.draw(panels, lines, log=True)


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """What the figure shows."""
    what = "Policy-gradient variance at each measured update's old parameters, from disjoint groups (log axes). Left:"
    left = "tr Sigma / n / |g|^2, noise over signal of the batch, free of scale."
    right = "Right: tr Sigma of one sample, which carries the gate's w(1)^2."
    return f"{what} {left} {right} {interval_text(panels, settings)}"
