"""Figures computed in advance, as data for the page's script: curves, paths and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rgpo.report.figures.aggregates import Aggregate
from rgpo.report.figures.frontier import Plane, Trajectory
from rgpo.report.figures.gates import MAX_JUMPS, Curve, with_jumps
from rgpo.report.figures.proxy_against_gold import LOOKS
from rgpo.report.figures.series import Panel, Series
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import Floats, Interval
from rgpo.report.tables.bench import Case, median_and_range
from rgpo.report.tables.matched import OVER_SETTINGS, REWARDS, Matched, against_baseline, arms_against_baseline

MAX_POINTS = 100  # points per curve
MAX_SEEDS = 5  # seeds drawn individually per curve
MANY_CURVES = 16  # panels with more curves get no individual seeds and fewer points, for legibility and size
FEW_POINTS = 40
LOG = {  # figure -> logarithmic axes
    "epoch_drift": (False, True),
    "spikes": (True, False),
    "ratio_tails": (True, True),
    "frontier": (False, False),
    "settings_frontier": (True, False),
}


def drawn(name: str, panels: Sequence[object]) -> list[dict[str, object]]:
    """One mapping per pair of axes, in the formats that the page's script understands.

    Raises: TypeError for panels of an unknown type.
    """
    log_x, log_y = LOG.get(name, (False, False))
    made: list[dict[str, object]] = []
    for panel in _gates(panels) if panels and isinstance(panels[0], Curve) else panels:
        if isinstance(panel, Panel):
            made.append(_curves(panel, log_x and panel.x_label != "update", log_y))
        elif isinstance(panel, Plane):
            made.append(_paths(panel))
        elif isinstance(panel, Aggregate):
            level = 0.5 if name == "improvement" else 1.0
            made.append(_intervals(panel.name, "P(better)" if name == "improvement" else "normalized score", panel.found, level))
        elif isinstance(panel, Case):
            main = {who: one for who, one in panel.contestants.items() if "," not in who}  # excludes our other gates
            speeds = {who: median_and_range(list(one.speed.values())) for who, one in main.items()}
            made.append(_intervals(panel.name, f"{panel.unit} per CPU-second", speeds, 0.0))
        else:
            raise TypeError(f"{name}: panels of type {type(panel).__name__} have no drawing on the page")
    return made


def equal_kl(groups: Sequence[Group], settings: Settings) -> list[dict[str, object]]:
    """For each reward, every arm's change from the baseline at the largest KL that all runs of both reach."""
    made = []
    for name, column in REWARDS.items():
        for task in sorted({group.task for group in groups}):
            found = against_baseline([group for group in groups if group.task == task], column, settings)
            made += _changes(f"{task}: {name}", [(group.label, base.label, levels) for group, base, levels in found])
    return made


def equal_kl_over_settings(groups: Sequence[Group], settings: Settings) -> list[dict[str, object]]:
    """Same as ``equal_kl`` for arms that were run with several settings, including returns over the KL per update."""
    made = []
    for name, (x, y) in OVER_SETTINGS.items():
        for task in sorted({group.task for group in groups}):
            found = arms_against_baseline([group for group in groups if group.task == task], x, y, settings)
            made += _changes(f"{task}: {name}", [(arm.label, base.label, levels) for arm, base, levels in found])
    return made


def _changes(title: str, found: Sequence[tuple[str, str, Sequence[Matched]]]) -> list[dict[str, object]]:
    """One panel with the changes at the last level of each (label, baseline's label, levels)."""
    rows = {f"{label} at {levels[-1].level:.2g} nats": (label, levels[-1].change) for label, _, levels in found}
    if not rows:
        return []
    shown = {text: change for text, (_, change) in rows.items()}
    panel = _intervals(f"{title}, at equal KL, change against {found[0][1]}", "percent", shown, 0.0)
    panel["looks"] = {text: label for text, (label, _) in rows.items()}
    return [panel]


def _curves(panel: Panel, log_x: bool, log_y: bool) -> dict[str, object]:
    return {
        "kind": "curves",
        "title": panel.title or panel.task,
        "x": panel.x_label,
        "y": panel.y_label.replace("\n", " "),
        "logX": log_x,
        "logY": log_y,
        "levels": list(panel.levels),
        "curves": [_series(series, len(panel.series) > MANY_CURVES) for series in panel.series],
    }


def _series(series: Series, many: bool) -> dict[str, object]:
    at = _chosen(len(series.x), FEW_POINTS if many else MAX_POINTS)
    return {
        "label": series.label,
        "x": _numbers(series.x[at]),
        "y": _numbers(series.mean[at]),
        "low": _numbers(series.low[at]),
        "high": _numbers(series.high[at]),
        "seeds": [
            [_numbers(x[_chosen(len(x), MAX_POINTS)]), _numbers(y[_chosen(len(y), MAX_POINTS)])]
            for x, y in (() if many else series.seeds[:MAX_SEEDS])
        ],
        "n": series.num_seeds,
    }


def _paths(plane: Plane) -> dict[str, object]:
    """Rewards over KL for several labels, or for one label and two reward models."""
    names = [curve.label for curve in plane.series]
    pair = len(names) == len(LOOKS) and len(set(names)) == 1
    names = list(LOOKS) if pair else names
    return {
        "kind": "curves",
        "title": f"{plane.series[0].label}, {plane.task}" if pair else plane.task,
        "x": "KL(policy || reference), nats per completion",
        "y": plane.y_label.replace("\n", " "),
        "logX": False,
        "logY": False,
        "levels": [0],
        "curves": [
            _trajectory(curve) | ({"label": name} if pair else {}) for curve, name in zip(plane.series, names, strict=True)
        ],
    }


def _trajectory(curve: Trajectory) -> dict[str, object]:
    seeds = [[_numbers(x), _numbers(y)] for x, y in curve.seeds[:MAX_SEEDS]]
    cross = [[_number(end) for end in interval] for interval in (curve.end_kl, curve.end_reward)]
    x, y = _numbers(curve.kl), _numbers(curve.reward)
    bars = [[_number(level), _number(found.low), _number(found.high)] for level, found in curve.levels]
    return {"label": curve.label, "x": x, "y": y, "seeds": seeds, "path": True, "cross": cross, "bars": bars}


def _intervals(title: str, unit: str, found: Mapping[str, Interval], level: float | None) -> dict[str, object]:
    rows = [
        {"label": label, "value": _number(i.value), "low": _number(i.low), "high": _number(i.high)} for label, i in found.items()
    ]
    return {"kind": "intervals", "title": title, "x": unit, "level": level, "rows": rows}


def _gates(curves: Iterable[object]) -> list[Panel]:
    """A panel per gate: g and w for A >= 0, and for A < 0 if different."""
    by_gate: dict[str, list[Curve]] = {}
    for curve in curves:
        if isinstance(curve, Curve):
            by_gate.setdefault(curve.gate, []).append(curve)
    panels = []
    for gate, sides in by_gate.items():
        series = []
        for what in ("gate_value", "weight"):
            first = getattr(sides[0], what)
            for curve in sides:
                y = getattr(curve, what)
                alike = y.shape == first.shape and np.allclose(y, first, rtol=1e-4, atol=1e-6, equal_nan=True)
                if curve is sides[0] or not alike:
                    label = f"{'g' if what == 'gate_value' else 'w = dg/dd'}, A {'≥' if curve.advantage > 0 else '<'} 0"
                    at = _chosen(len(y), MAX_POINTS - 2 * MAX_JUMPS)
                    x, shown = with_jumps(curve.log_ratio[at], np.where((y >= -1) & (y <= 3.2), y, np.nan)[at])
                    nothing = np.full(len(x), np.nan)
                    series.append(Series(label, x, shown, nothing, nothing, (), 0))
        panels.append(Panel("", "log ratio d, nats", "", tuple(series), title=gate))
    return panels


def _chosen(num_points: int, most: int) -> slice | np.ndarray:
    """Indices of at most `most` points, including the first and the last."""
    if num_points <= most:
        return slice(None)
    return np.unique(np.linspace(0, num_points - 1, most).astype(int))


def _numbers(values: Floats) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """Round to four digits; None (null in JSON) if the value is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
