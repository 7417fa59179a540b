"""Compact encoding of curves: 16 bits per point, on a linear or log scale from smallest to largest value, in base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np

from rgpo.report.read.columns import EVAL, GOLD, KL, KL_REF, LENGTH, PROXY, REWARD, TRAIN
from rgpo.report.read.reduce import CPU, SUM_TOKENS, WALL
from rgpo.report.read.run import Run
from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime.schema import GLOSSARY, Metric, is_list

Encoded = tuple[float, float, int, str]  # smallest and largest value, 1 if these are logarithms, codes
STEPS = 65534  # number of steps from smallest to largest; the next code means missing
MAX_VALUES = 300_000  # points in all curves of a page, 0.8 MB
LOG_RANGE = 50.0  # ratio of largest to smallest above which a log scale is used
FIRST = (TRAIN, EVAL, PROXY, GOLD, REWARD, KL, KL_REF, LENGTH, "weight/relative_mean", "ess/weight", "ess/ratio", "ratio/max")
OF_EACH_RUN = ("samples", "wall", "cpu")  # axes on which every run has different points
AXES = {"iteration": "iteration", "env_steps": "env_steps", "samples": SUM_TOKENS, "wall": WALL, "cpu": CPU}  # x axis -> curve


def encode(values: Floats) -> Encoded | None:
    """Encode a curve (P,) with an error of at most 1/131,068 of its range; None if no value is finite."""
    finite = np.isfinite(values)
    if not finite.any():
        return None
    known = values[finite]
    log = bool(known.min() > 0 and known.max() > LOG_RANGE * known.min())
    scaled = np.log(known) if log else known
    low, high = float(scaled.min()), float(scaled.max())
    codes = np.full(len(values), STEPS + 1, dtype="<u2")
    codes[finite] = np.rint((scaled - low) / (high - low) * STEPS) if high > low else 0
    return float(f"{low:.9g}"), float(f"{high:.9g}"), int(log), base64.b64encode(codes.tobytes()).decode()


def shown_metrics(runs: Sequence[Run], num_values: int) -> dict[str, Metric]:
    """The metrics that at least one run measured, important ones first, as many as fit in `num_values` points.

    Standard errors and lists are omitted.
    """
    own: dict[str, Metric] = {}
    for run in runs:
        own |= run.metrics
    known = {**GLOSSARY, **own}
    order = [*(name for name in FIRST if name in known), *own, *(name for name in known if name not in FIRST and name not in own)]
    num_points = sum(len(run.reduced.curves["iteration"]) for run in runs)
    most = num_values // max(num_points, 1)
    found = [name for name in order if not is_list(name) and not name.endswith("_se") and any(run.has(name) for run in runs)]
    return {name: known[name] for name in found[:most]}


def curves(runs: Sequence[Run], metrics: Mapping[str, Metric]) -> dict[str, object]:
    """The page's columns: distinct x axes, and for each metric one encoded curve or None per run."""
    axes: dict[str, object] = {}
    for name, column in AXES.items():
        distinct: dict[bytes, int] = {}
        points: list[list[float] | Encoded | None] = []
        places = []
        for run in runs:
            values = run.curve(column)
            if not np.isfinite(values).all():
                places.append(-1)
                continue
            place = distinct.setdefault(values.tobytes(), len(distinct))
            if place == len(points):
                points.append(
                    encode(values) if name in OF_EACH_RUN else [int(v) if v % 1 == 0 else float(f"{v:.6g}") for v in values]
                )
            places.append(place)
        if max(places, default=-1) >= 0:
            axes[name] = {"points": points, "of": places}
    return {
        "axes": axes,
        "metrics": [
            {"name": name, "unit": metric.unit, "meaning": metric.meaning, "of": [encode(run.curve(name)) for run in runs]}
            for name, metric in metrics.items()
        ],
    }
