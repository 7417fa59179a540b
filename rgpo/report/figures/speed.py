"""Speed of ours beside others on the same work, and where ours' time goes; from results_dir/bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from rgpo.report.figures import style
from rgpo.report.figures.drawing import draw_intervals
from rgpo.report.figures.style import Line
from rgpo.report.figures.timing import LOOKS
from rgpo.report.tables.bench import OURS, PHASES, Case, middle

SCALES = ("linear x axis",)
OTHER = style.KNOWN["awr"]
CONTESTANTS = {
    OURS: Line(style.VERMILLION, style.SOLID, "o"),
    "sb3": Line(style.BLUE, style.SOLID, "s"),
    "plain": Line(style.GREY, style.SOLID, "D"),
    "trl": Line(style.GREEN, style.SOLID, "^"),
}


def draw(cases: Sequence[Case], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """A row a case: speeds without those of ours' other gates, and the phases of ours."""
    figure, all_axes = style.grid(2 * len(cases), columns=2, height=1.0)
    for i, case in enumerate(cases):
        last = i + 1 == len(cases) or cases[i + 1].unit != case.unit
        speeds, phases = all_axes[2 * i : 2 * i + 2]
        found = {name: middle(list(one.speed.values())) for name, one in case.contestants.items() if "," not in name}
        looks = {name: CONTESTANTS.get(name, OTHER) for name in found}
        draw_intervals(speeds, found, looks, level=found[OURS].value if OURS in found else 0.0, names=True)
        speeds.set_xlim(left=0)
        speeds.xaxis.set_major_formatter(EngFormatter(sep=""))
        speeds.set_title(case.name)
        speeds.set_xlabel(f"{case.unit} per CPU-second" if last else "")
        _draw_shares(phases, case.contestants[OURS].shares if OURS in found else {})
        phases.set_xlabel("time of ours  [%]" if last else "")
    patches = [Patch(facecolor=LOOKS[p][0], hatch=LOOKS[p][1], edgecolor=style.BLACK, linewidth=0.4, label=p) for p in PHASES]
    style.legend_below(figure, {}, patches)
    return figure


def _draw_shares(axes: Axes, shares: Mapping[str, float]) -> None:
    """One stacked bar."""
    left = 0.0
    for phase, share in shares.items():
        color, hatch = LOOKS[phase]
        axes.barh(0, share, 0.7, left, color=color, hatch=hatch, edgecolor=style.BLACK, linewidth=0.4)
        left += share
    axes.set_xlim(0, 100)
    axes.set_ylim(-0.8, 0.8)
    axes.set_yticks([0], [OURS])
    axes.grid(axis="y", visible=False)


def caption(cases: Sequence[Case]) -> str:
    """What the figure shows."""
    what = (
        "Left: steps or tokens per CPU-second on one thread, median over rounds, bars: least to most, dashed: ours. Right: share"
    )
    phases = (
        "of ours' time by phase; collecting is acting and stepping, or generation, scores and the reference's log-probabilities."
    )
    names = (
        "sb3: Stable-Baselines3, and sb3-contrib for TRPO; plain: a loop in CleanRL's manner; trl: TRL's GRPOTrainer; gradvar: "
        "the gradient's variance."
    )
    return f"{what} {phases} {names} Numbers, ratios and other gates stand in the table."
