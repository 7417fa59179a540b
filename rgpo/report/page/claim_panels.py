"""A figure per claim with the data that its rule compares: every seed's number, or path, for each arm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rgpo.report.claims.claim import Loaded
from rgpo.report.claims.evidence import NULL, Sample, Selection
from rgpo.report.claims.external import Anchors
from rgpo.report.claims.frontier import Dominance
from rgpo.report.claims.ledger import Judged
from rgpo.report.claims.verdict import CONFIDENCE, selected
from rgpo.report.read.run import Run
from rgpo.report.stats.independent import student
from rgpo.report.tables.matched import path_of

MAX_POINTS = 100  # per path


def claim_panels(one: Judged, runs: Sequence[Run], anchors: Anchors) -> list[dict[str, object]]:
    """A panel per task of a claim about runs, with the arms that have runs; none for a claim about theory."""
    loaded = one.loaded
    if loaded.rule is None:
        return []
    selection, _ = selected(loaded, runs, anchors)
    if not selection.runs:
        return []
    if isinstance(loaded.rule, Dominance):
        return [panel for task in selection.samples if (panel := _paths(loaded, loaded.rule, selection, task))["curves"]]
    return [_numbers(loaded, selection, task, *number) for task in selection.samples for number in loaded.numbers]


def _name(loaded: Loaded, arm: str) -> str:
    """An arm's role and settings as text."""
    settings = ", ".join(str(value) for value in loaded.arms[arm].values())
    return f"{'null arm' if arm == NULL else arm}: {settings}"


def _numbers(loaded: Loaded, selection: Selection, task: str, metric: str, statistic: str) -> dict[str, object]:
    rows = [_row(_name(loaded, arm), sample, metric, statistic) for arm, sample in selection.samples[task].items()]
    title = f"{task}: {statistic} of {metric}"
    return {
        "kind": "intervals",
        "title": title,
        "x": f"{metric}; circles: seeds; bars: {100 * CONFIDENCE:g} % Student",
        "rows": rows,
    }


def _row(name: str, sample: Sample, metric: str, statistic: str) -> dict[str, object]:
    found = student(sample.summary(metric, statistic), CONFIDENCE)
    value, low, high = (None if math.isnan(end) else float(f"{end:.5g}") for end in found)
    dots = [] if sample.anchor else [float(f"{v:.5g}") for v in sample.values(metric, statistic)]
    note = "published" if sample.anchor else f"n = {sample.n}" if sample.n else "not run"
    return {"label": name, "value": value, "low": low, "high": high, "dots": dots, "note": note}


def _paths(loaded: Loaded, rule: Dominance, selection: Selection, task: str) -> dict[str, object]:
    curves = []
    for arm, sample in selection.samples[task].items():
        paths = [path for path in (path_of(run, rule.x, rule.y) for run in sample.runs) if path is not None]
        if paths:
            length = min(len(x) for x, _ in paths)
            at = np.unique(np.linspace(0, length - 1, min(length, MAX_POINTS)).astype(int))
            seeds = [[[float(f"{v:.4g}") for v in side[at]] for side in path] for path in paths]
            x, y = ([float(f"{v:.4g}") for v in np.mean([path[k][at] for path in paths], axis=0)] for k in (0, 1))
            curves.append({"label": _name(loaded, arm), "x": x, "y": y, "seeds": seeds[:5], "path": True})
    axes = {"x": rule.x, "y": rule.y, "logX": False, "logY": False, "levels": [0]}
    return {"kind": "curves", "title": task, **axes, "curves": curves}
