"""Diagnostics of one gradient step, with the names of our schema."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rgpo.core.gate import GateLike
from rgpo.learning.diagnostics import update_statistics
from rgpo.learning.types import PolicyShift

UNMEASURED = ("kl/old_exact",)  # of what engines store no distributions for


def step_statistics(log_ratio: Tensor, advantage: Tensor, entropy: Tensor, gate: GateLike, seen: Tensor) -> dict[str, float]:
    """KL(old || new), ratios, gate, weights, effective sample sizes, tail index of the n samples of a gradient step, (n,) each.

    log_ratio: d = log new/old before the step, nats; seen: the log ratio that the gate sees. Numbers that are not finite, such as
    the tail index of equal ratios, are left out.
    """
    rows = PolicyShift(log_ratio[None], torch.full_like(log_ratio, math.nan)[None], entropy[None], seen[None])
    found = update_statistics(rows, gate, advantage)
    return {name: x for name, x in found.items() if isinstance(x, float) and math.isfinite(x) and name not in UNMEASURED}


class Window:
    """Inputs of the gate at the n tokens (or completions) of one gradient step, over its micro-batches."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, *columns: Tensor) -> None:
        """A micro-batch: log ratio, the one that the gate sees, log ratio to the reference, advantage, entropy; (n,) each."""
        self._rows.append(torch.stack([x.detach().float() for x in columns]))

    def take(self, accelerator: Any) -> Tensor:
        """The columns (5, n) of all micro-batches and processes; the window is empty afterwards."""
        found, self._rows = torch.cat(self._rows, dim=1), []
        if accelerator.num_processes > 1:
            padded = accelerator.pad_across_processes(found, dim=1, pad_index=torch.nan)
            found = torch.cat(accelerator.gather(padded).split(len(found)), dim=1)
            found = found[:, ~found[0].isnan()]
        return found
