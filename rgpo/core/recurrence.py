"""The recurrence behind discounted returns and advantages."""

from __future__ import annotations

import numpy as np

from rgpo.core.rollout import Array


def recurrence(decay: Array, drive: Array, start: Array) -> Array:
    """y_t = decay_t y_{t-1} + drive_t with y_{-1} = start; decay, drive (T, E), start (E,) -> (T, E) float64.

    Python's own floats: at the few environments of one process they are faster than a numpy row for each step.
    """
    columns = []
    for factors, terms, y in zip(decay.T.tolist(), drive.T.tolist(), start.tolist(), strict=True):
        column = []
        for factor, term in zip(factors, terms, strict=True):
            y = factor * y + term
            column.append(y)
        columns.append(column)
    return np.array(columns).T
