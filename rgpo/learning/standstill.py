"""Detection of policies that no longer change: such a run completes, but learns nothing."""

from __future__ import annotations

import math

import numpy as np

from rgpo.core.rollout import Array

ROUNDING = 1e-14  # nats; the KL of log-probabilities that differ only by the resolution of single precision, 1e-7


def standstill(kl: Array, grad_norm: Array) -> str | None:
    """A sentence if KL(old || new) or the gradient was 0 in the last tenth of the iterations, at least 2 of them; else None.

    kl and grad_norm have one entry per iteration, NaN where it was not measured.
    """
    length = len(kl)
    for name, column, limit in (("gradient", grad_norm, 0.0), ("KL(old || new)", kl, ROUNDING)):
        changed = np.flatnonzero(~(np.abs(column) <= limit))  # NaN counts as a change
        still = length - int(changed[-1]) - 1 if changed.size else length
        if still >= max(2, math.ceil(length / 10)):
            causes = "a step size too large or too small, a saturated policy, or rewards that never differ"
            return f"the {name} was 0 in the last {still:,} of {length:,} iterations: nothing was learned there ({causes})"
    return None
