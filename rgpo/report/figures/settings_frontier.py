"""Results against KL for arms run with several penalty strengths: one curve per arm through the ends of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures import series
from rgpo.report.figures.drawing import draw_panels
from rgpo.report.figures.series import Panel, Series
from rgpo.report.figures.style import Line
from rgpo.report.read.arms import Arm, arms_of
from rgpo.report.read.columns import GOLD, KL, KL_REF, PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats.independent import simultaneous, student, summarize
from rgpo.report.tables.matched import OVER_SETTINGS, arm_paths

COLUMNS = (KL, TRAIN, KL_REF, PROXY, GOLD)
SCALES = ("log x axis", "linear x axis")
X_LABELS = {KL: "KL(old || new) per update", KL_REF: "KL(policy || reference)"}
Y_LABELS = {TRAIN: "training return", PROXY: "proxy reward, change", GOLD: "gold reward, change"}


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Panel, ...]:
    """A panel per task and result, for arms that were run with several settings."""
    arms = [arm for arm in arms_of(groups) if len(arm.groups) > 1]
    made = []
    for task in dict.fromkeys(arm.task for arm in arms):
        for x, y in OVER_SETTINGS.values():
            found = (curve(arm, x, y, settings) for arm in arms if arm.task == task)
            curves = tuple(one for one in found if one is not None)
            if curves:
                made.append(Panel(task, series.with_unit(X_LABELS[x], x), Y_LABELS[y], curves))
    return tuple(made)


def curve(arm: Arm, x: str, y: str, settings: Settings) -> Series | None:
    """Means over seeds at each of an arm's settings, by increasing mean x, with simultaneous intervals for y."""
    ends = [np.array(path)[:, -len(arm.groups) :] for path in arm_paths(arm, x, y) if len(path[0]) >= len(arm.groups)]
    if not ends:
        return None
    by_setting = np.stack(ends).transpose(2, 1, 0)  # (K, 2, S); each seed's k-th smallest x is taken as the k-th setting
    each = simultaneous(settings.confidence, len(by_setting))
    intervals = [student(summarize(values), each) for _, values in by_setting]
    low, high = (np.array([interval[side] for interval in intervals]) for side in (1, 2))
    return Series(arm.label, by_setting[:, 0].mean(1), by_setting[:, 1].mean(1), low, high, tuple(map(tuple, ends)), len(ends))


def draw(panels: Sequence[Panel], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """Small multiples over a logarithmic KL."""
    return draw_panels(panels, lines, log_x=scale == SCALES[0])


def caption(panels: Sequence[Panel], settings: Settings) -> str:
    """The figure's caption."""
    what = "Mean result over mean KL at the end of training (last tenth), a point per strength of the penalty, width of the clip"
    bands = f"Bands: {100 * settings.confidence:g} % Student intervals that hold at all of an arm's points together; thin: seeds."
    return f"{what} or radius of the trust region. {bands} Arms on one curve buy the same result with the same KL."
