"""Gate value and weight of every arm's gate as it was run, including users' own gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from rgpo.report.figures import gates
from rgpo.report.figures.gates import MAX_NAME, Curve
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.runtime.provenance import SIGNS, GateCurve
from rgpo.runtime.reader import printable

COLUMNS = ()
SCALES = ("",)
MAX_GATES = 40


def compute(groups: Sequence[Group], settings: Settings) -> tuple[Curve, ...]:
    """Two curves per distinct gate, A = 1 before A = -1, in the order of the groups."""
    found: dict[str, GateCurve] = {}
    for group in groups:
        for run in group.used[:1]:
            drawn = run.provenance.gate_curve
            if drawn is not None and len(found) < MAX_GATES:
                found.setdefault(printable(run.provenance.gate[:MAX_NAME]), drawn)
    curves = []
    for name, drawn in found.items():
        for i, sign in enumerate(SIGNS):
            numbers = (np.array(x, dtype=np.float64) for x in (drawn["log_ratio"], drawn["gate_value"][i], drawn["weight"][i]))
            curves.append(Curve(name, sign, *numbers))
    return tuple(curves)


def draw(curves: Sequence[Curve], lines: Mapping[str, Line], scale: str = "") -> Figure:
    """A panel per gate."""
    return gates.draw(curves, lines, scale)


def caption(curves: Sequence[Curve], settings: Settings) -> str:
    """The figure's caption."""
    what = "Gate value g and weight w, which multiplies A grad log pi, over d = log r, with each arm's own parameters"
    return f"{what} (at an old probability of 1/2, and in an example batch). Dashed (A < 0) only where the sign of A matters."
