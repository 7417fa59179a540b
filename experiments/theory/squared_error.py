"""Bias and variance of the normalized estimate w A s / w(1) of E[r A s] on the bandit, exact by quadrature, for heavy_tail."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from experiments.theory.common import load_gate
from rgpo.bandit.laws import Law
from rgpo.bandit.measure import P_POSITIVE, SCORE_MEAN, SCORE_SQUARE, weight_moment
from rgpo.core.gate import GateLike
from rgpo.core.rollout import Array

TARGET = (2 * P_POSITIVE - 1) * SCORE_MEAN  # E[r A s], since E r = 1
SIDES = {P_POSITIVE: 1.0, 1 - P_POSITIVE: -1.0}  # probability to sign of A


def estimators(num: int) -> list[tuple[str, float, GateLike]]:
    """Kind, parameter and gate: num sigmoids by k, num truncations min(r, c) by c, and three that are fixed."""
    gates = [("gate", float(k), load_gate("sigmoid", sharpness=float(k))) for k in np.geomspace(1e-6, 30, num)]
    truncations = [("truncation", float(c), load_gate("cispo", cap=float(c))) for c in np.geomspace(1.05, 1e7, num)]
    fixed = [("RGPO k = 10", 10.0, load_gate("sigmoid")), ("dual clip", 3.0, load_gate("clip", cap=3.0))]
    return [*gates, *truncations, *fixed, ("IS", 0.0, load_gate("identity"))]


def bias_and_variance(gate: GateLike, law: Law) -> tuple[float, float]:
    """Of one sample of w A s / w(1); the variance may be inf."""
    unit = gate.weight_at_one()
    halves = {p: [weight_moment(gate, law, power, sign) / unit**power for power in (1, 2)] for p, sign in SIDES.items()}
    mean = SCORE_MEAN * sum(math.copysign(p, sign) * halves[p][0] for p, sign in SIDES.items())
    square = SCORE_SQUARE * sum(p * halves[p][1] for p in SIDES)
    return mean - TARGET, square - mean**2


def table_of_errors(laws: dict[tuple[str, float], Law], num: int) -> pd.DataFrame:
    """One row per law (family, tail index) and estimator."""
    rows = [
        (*key, kind, parameter, *bias_and_variance(gate, law))
        for key, law in laws.items()
        for kind, parameter, gate in estimators(num)
    ]
    return pd.DataFrame(rows, columns=["family", "tail_index", "estimator", "parameter", "bias", "variance"])


def best_errors(table: pd.DataFrame, family: str, index: float, sizes: Array) -> dict[str, tuple[Array, Array]]:
    """Estimator to (smallest root mean squared error (n,), the parameter that gives it (n,)) for n = sizes samples."""
    found = {}
    here = table[(table.family == family) & (table.tail_index == index)]
    for kind, rows in here.groupby("estimator", sort=False):
        mse = rows.bias.to_numpy()[:, None] ** 2 + rows.variance.to_numpy()[:, None] / sizes
        found[str(kind)] = np.sqrt(mse.min(0)), rows.parameter.to_numpy()[mse.argmin(0)]
    return found
