"""Speed compared with other implementations on the same work, and our time by phase, from results_dir/bench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rgpo.report.figures import style
from rgpo.report.figures.drawing import draw_intervals, draw_phases, phase_legend
from rgpo.report.figures.style import Line
from rgpo.report.tables.bench import OURS, PHASES, Case, median_and_range

SCALES = ("linear x axis",)
OTHER = style.KNOWN["awr"]
CONTESTANTS = {
    OURS: Line(style.VERMILLION, style.SOLID, "o"),
    "sb3": Line(style.BLUE, style.SOLID, "s"),
    "plain": Line(style.GRAY, style.SOLID, "D"),
    "trl": Line(style.GREEN, style.SOLID, "^"),
}


def draw(cases: Sequence[Case], lines: Mapping[str, Line], scale: str = SCALES[0]) -> Figure:
    """A row per case: speeds, excluding our other gates, and our phases."""
    figure, all_axes = style.grid(2 * len(cases), columns=2, height=1.0)
    for i, case in enumerate(cases):
        last = i + 1 == len(cases) or cases[i + 1].unit != case.unit
        speeds, phases = all_axes[2 * i : 2 * i + 2]
        found = {name: median_and_range(list(one.speed.values())) for name, one in case.contestants.items() if "," not in name}
        looks = {name: CONTESTANTS.get(name, OTHER) for name in found}
        draw_intervals(speeds, found, looks, level=found[OURS].value if OURS in found else 0.0, names=True)
        speeds.set_xlim(left=0)
        speeds.xaxis.set_major_formatter(EngFormatter(sep=""))
        speeds.set_title(case.name)
        speeds.set_xlabel(f"{case.unit} per CPU-second" if last else "")
        draw_phases(phases, 0, case.contestants[OURS].shares if OURS in found else {})
        phases.set_xlim(0, 100)
        phases.set_ylim(-0.8, 0.8)
        phases.set_yticks([0], [OURS])
        phases.set_xlabel("share of our time  [%]" if last else "")
    phase_legend(figure, PHASES)
    return figure


def caption(cases: Sequence[Case]) -> str:
    """The figure's caption."""
    what = (
        "Steps or tokens per CPU-second on one thread, median over rounds; bars: smallest to largest. In a file the dashed line"
    )
    phases = (
        "is ours, and the right column the share of our time by phase; collect: acting and stepping, or generation and scores."
    )
    names = "sb3: Stable-Baselines3, and sb3-contrib for TRPO; plain: a loop in the style of CleanRL; trl: TRL's GRPOTrainer;"
    return f"{what} {phases} {names} gradvar: the gradient's variance. The table has the numbers, ratios and our other gates."
