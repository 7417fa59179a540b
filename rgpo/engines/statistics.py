"""Diagnostics of one gradient step under the metric names of our schema."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from rgpo.core.divergences import reweighted_kl
from rgpo.core.gate import GateLike
from rgpo.learning.diagnostics import update_statistics
from rgpo.learning.loss import GateInputs
from rgpo.learning.samples import PolicyShift, Samples


class Accelerator(Protocol):
    """The part of accelerate.Accelerator needed to combine several processes."""

    @property
    def num_processes(self) -> int: ...

    def pad_across_processes(self, tensor: Tensor, dim: int, pad_index: float) -> Tensor:
        """Pad the tensor with pad_index at the end to the longest length over processes."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors of all processes."""
        ...


class Window:
    """Collects the gate's inputs at the n samples of a gradient step over its micro-batches, and computes their statistics."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, d_old: Tensor, d_ref: Tensor, entropy: Tensor, seen: GateInputs) -> None:
        """Add a micro-batch: log ratios new/old and new/reference, entropies, and the gate's inputs; (n,) each."""
        columns = (d_old, d_ref, entropy, seen.d_old, seen.advantage, seen.logp_old)
        self._rows.append(torch.stack([x.detach().float() for x in columns]))

    def take(
        self, gate: GateLike, *, reference: bool, accelerator: Accelerator | None = None, kl: Tensor | None = None
    ) -> dict[str, float]:
        """KL, ratios, gate, weights, effective sample sizes and tail index over all micro-batches and processes.

        The ratios are those before the step. kl: the exact KL(old || new) of each sample, if distributions are known. Values that
        are not finite, such as the tail index of equal ratios, are omitted. The window is empty afterwards.
        """
        found, self._rows = torch.cat(self._rows, dim=1), []
        if accelerator is not None and accelerator.num_processes > 1:
            padded = accelerator.pad_across_processes(found, dim=1, pad_index=math.nan)
            found = torch.cat(accelerator.gather(padded).chunk(accelerator.num_processes), dim=1)
            found = found[:, ~found[0].isnan()]
        d_old, d_ref, entropy, seen, advantage, logp_old = found
        unmeasured = torch.full_like(d_old, math.nan)
        shift = PolicyShift(
            d_old[None],
            (unmeasured if kl is None else kl)[None],
            entropy[None],
            gate_log_ratio=seen[None],
            gate_logp_old=logp_old[None],
        )
        metrics = update_statistics(shift, gate, Samples(logp_old, None, advantage, unmeasured, unmeasured))
        if reference:
            metrics["kl/ref_unbiased"] = reweighted_kl(d_old.double(), d_ref.double()).mean().item()
        return {name: x for name, x in metrics.items() if isinstance(x, float) and math.isfinite(x)}
