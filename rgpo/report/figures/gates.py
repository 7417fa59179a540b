"""Gate value g and weight w = dg/dd of every gate over d = log r, from results_dir/gates.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rgpo.report.figures import style
from rgpo.report.read.rows import read_records
from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime.former import canonical_name
from rgpo.runtime.reader import Missing, Unreadable, printable

FILE = "gates.parquet"
SCALES = ("",)
COMMAND = "python -m rgpo.cli.gates_table"
TABLE_COLUMNS = {"gate": str, "advantage": float, "log_ratio": float, "gate_value": float, "weight": float}
MAX_NAME, MAX_GATES = 40, 100  # most characters in a gate's name; most panels
G, W = style.BLUE, style.VERMILLION
G_WIDTH, W_WIDTH = 2.0, 1.0  # line widths in points; different, so that coinciding lines are both visible
Y_LIMITS = (-1.0, 3.2)
JUMP, STEEPER, MAX_JUMPS = (
    0.05,
    4.0,
    4,
)  # smallest difference between neighbors that is a jump, and by what factor it must exceed the adjacent ones


@dataclass(frozen=True)
class Curve:
    """One gate for one sign of A: d, g and w (I,)."""

    gate: str
    advantage: float  # 1 or -1
    log_ratio: Floats
    gate_value: Floats
    weight: Floats


def compute(results_dir: Path) -> tuple[Curve, ...]:
    """Curves ordered by their gate's current name, then A = 1 before A = -1.

    Raises: Unreadable, with the command that makes the file, if it is missing or damaged.
    """
    path = results_dir / FILE
    try:
        records = read_records(path, TABLE_COLUMNS)
    except Missing:
        raise Unreadable(f"there is no {path}; make it with `{COMMAND}`") from None
    except Unreadable as error:
        raise Unreadable(f"{error}; make it again with `{COMMAND}`") from None
    names = np.array([printable(canonical_name("gate", record["gate"]), MAX_NAME) for record in records], dtype=object)
    numbers = {key: np.array([record[key] for record in records], dtype=np.float64) for key in TABLE_COLUMNS if key != "gate"}
    if len(set(names)) > MAX_GATES:
        raise Unreadable(f"{path.name} has more than {MAX_GATES} gates; make it again with `{COMMAND}`")
    curves = []
    for gate in sorted(set(names)):
        for side in (1.0, -1.0):
            rows = np.flatnonzero((names == gate) & (numbers["advantage"] == side))
            rows = rows[np.argsort(numbers["log_ratio"][rows], kind="stable")]
            curves.append(Curve(gate, side, *(numbers[key][rows] for key in ("log_ratio", "gate_value", "weight"))))
    return tuple(curves)


def draw(curves: Sequence[Curve], lines: Mapping[str, style.Line], scale: str = "") -> Figure:
    """A panel per gate: g and w, solid for A >= 0, dashed for A < 0 if different."""
    gates = list(dict.fromkeys(curve.gate for curve in curves))
    figure, all_axes = style.grid(len(gates), columns=5, height=1.35)
    for i, (axes, gate) in enumerate(zip(all_axes, gates, strict=True)):
        positive, negative = (c for c in curves if c.gate == gate)
        for y, other, color, width in (
            (positive.gate_value, negative.gate_value, G, G_WIDTH),
            (positive.weight, negative.weight, W, W_WIDTH),
        ):
            axes.plot(*with_jumps(positive.log_ratio, y), color=color, linewidth=width)
            if y.shape != other.shape or not np.allclose(y, other, rtol=1e-4, atol=1e-6, equal_nan=True):
                axes.plot(*with_jumps(negative.log_ratio, other), color=color, linewidth=width, linestyle=style.DASHED)
        axes.axvline(0, color=style.GRAY, linewidth=0.5, zorder=1)
        axes.set_title(gate)
        axes.set_ylim(*Y_LIMITS)
        axes.set_xlim(-3, 3)
        axes.set_xticks([-3, 0, 3])
        axes.set_yticks([-1, 0, 1, 2, 3])
        axes.tick_params(labelleft=i % 5 == 0, labelbottom=i + 5 >= len(gates))
        axes.set_xlabel("log ratio d  [nats]" if i + 5 >= len(gates) else "")
    looks = [(G, style.SOLID, G_WIDTH, "g, A ≥ 0"), (G, style.DASHED, G_WIDTH, "g, A < 0")]
    looks += [(W, style.SOLID, W_WIDTH, "w = dg/dd, A ≥ 0"), (W, style.DASHED, W_WIDTH, "w, A < 0")]
    handles = [Line2D([], [], color=c, linestyle=dashes, linewidth=width, label=text) for c, dashes, width, text in looks]
    style.legend_below(figure, {}, handles)
    return figure


def with_jumps(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """x and y (I,) with two points added at every jump of y, so that it is drawn as a step instead of a slope."""
    rise = np.nan_to_num(np.abs(np.diff(y)))
    beside = np.maximum(np.r_[0.0, rise[:-1]], np.r_[rise[1:], 0.0])
    jumps = np.flatnonzero((rise > JUMP) & (rise > STEEPER * beside))
    jumps = np.sort(jumps[np.argsort(-rise[jumps], kind="stable")][:MAX_JUMPS])
    middle, width = (x[jumps] + x[jumps + 1]) / 2, (x[jumps + 1] - x[jumps]) / 20
    at = np.repeat(jumps + 1, 2)
    sides, levels = np.c_[middle - width, middle + width], np.c_[y[jumps], y[jumps + 1]]
    return np.insert(x, at, sides.ravel()), np.insert(y, at, levels.ravel())


def caption(curves: Sequence[Curve]) -> str:
    """The figure's caption."""
    low, high = Y_LIMITS
    what = "Every gate of conf/gate with its default values: the gate value g and its slope w, the weight on A grad log pi,"
    signs = (
        "over d = log r (at an old probability of 1/2, and in an example batch). Dashed (A < 0) only where the sign of A matters;"
    )
    return f"{what} {signs} curves are cut off at {low:g} and {high:g}."
