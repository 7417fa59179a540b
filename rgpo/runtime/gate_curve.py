"""Tabulate a gate's value and weight over the log ratio for the report, which has no torch."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from rgpo.core.gate import GateBatch, GateLike, weight
from rgpo.runtime.provenance import SIGNS, GateCurve

FARTHEST = 3.0  # nats
OLD_PROBABILITY = 0.5  # old probability of every sample, for gates that use it
BATCH_SIZE, BATCH_SPREAD = 400, 0.4  # log ratios are normal with this std, A = 1, -1; for gates that depend on a batch
FEW_POINTS = 121  # for the curve stored with a run


def example_batch() -> GateBatch:
    """The batch used to draw gates whose bounds depend on a batch."""
    levels = (torch.arange(BATCH_SIZE, dtype=torch.float64) + 0.5) / BATCH_SIZE
    d = BATCH_SPREAD * torch.special.ndtri(levels)
    advantage = 1 - 2 * (torch.arange(BATCH_SIZE, dtype=torch.float64) % 2)
    return GateBatch(d, advantage, torch.full_like(d, math.log(OLD_PROBABILITY)))


def gate_curve(gate: GateLike, log_ratio: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """g and w (n,) at log ratios d (n,), for advantages equal to sign."""
    inputs = log_ratio, torch.full_like(log_ratio, sign), torch.full_like(log_ratio, math.log(OLD_PROBABILITY))
    curve = gate.prepare(example_batch())
    return curve(*inputs).detach(), weight(curve, *inputs).detach()


def drawn(gate: object) -> GateCurve | None:
    """The curve of a run's gate; None if it is not a gate or fails on these inputs."""
    if not hasattr(gate, "prepare"):
        return None
    log_ratio = torch.linspace(-FARTHEST, FARTHEST, FEW_POINTS, dtype=torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            both = [gate_curve(cast(GateLike, gate), log_ratio, sign) for sign in SIGNS]
    except Exception:  # a user's gate may raise anything; its first update will raise it again
        return None
    values, weights = ([[_number(x) for x in side.tolist()] for side in sides] for sides in zip(*both, strict=True))
    return {"log_ratio": [round(d, 3) for d in log_ratio.tolist()], "gate_value": values, "weight": weights}


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
