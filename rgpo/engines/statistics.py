"""Diagnostics of one gradient step, with the names of our schema."""

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
    """accelerate.Accelerator, as far as numbers of several processes need it."""

    @property
    def num_processes(self) -> int: ...

    def pad_across_processes(self, tensor: Tensor, dim: int, pad_index: float) -> Tensor:
        """The tensor with pad_index at its end, as long as that of the process with the longest one."""
        ...

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, one after the other."""
        ...


class Window:
    """Inputs of the gate at the n samples of one gradient step, over its micro-batches, and their statistics."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, d_old: Tensor, d_ref: Tensor, entropy: Tensor, seen: GateInputs) -> None:
        """A micro-batch: log ratios new/old and new/reference of its samples, entropy, and what the gate saw; (n,) each."""
        columns = (d_old, d_ref, entropy, seen.d_old, seen.advantage, seen.logp_old)
        self._rows.append(torch.stack([x.detach().float() for x in columns]))

    def take(
        self, gate: GateLike, *, reference: bool, accelerator: Accelerator | None = None, kl: Tensor | None = None
    ) -> dict[str, float]:
        """KL, ratios, gate, weights, effective sample sizes and tail index over all micro-batches and processes.

        The ratios are those before the step. kl: the exact KL(old || new) of each sample, where distributions are known. Numbers
        that are not finite, such as the tail index of equal ratios, are left out. The window is empty afterwards.
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
