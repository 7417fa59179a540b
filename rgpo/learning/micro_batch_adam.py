"""Adam over micro-batches, for policies that are torch modules and too large for one forward pass per minibatch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor

from rgpo import distributed
from rgpo.core.surrogate import Objective
from rgpo.learning import sharded
from rgpo.learning.culprits import NonFiniteStep
from rgpo.learning.flat_adam import Statistics
from rgpo.learning.gradients import gate_batch
from rgpo.learning.loss import Loss, standardize
from rgpo.learning.samples import PolicyShift
from rgpo.learning.types import Batch, Minibatch, Policy, State


class MicroBatchAdam:
    """torch's Adam on the summed loss of a minibatch's micro-batches; their size affects only memory and rounding.

    The samples of a minibatch stay together for all epochs of an iteration; each epoch shuffles the order of the minibatches.
    """

    note = "not compiled"

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        loss: Loss,
        *,
        normalize: bool,
        max_grad_norm: float | None,
        num_apart: int | None,
        adam_eps: float,
        seed: int,
    ) -> None:
        self.policy, self.objective, self.loss, self.normalize = policy, objective, loss, normalize
        self.limit = math.inf if max_grad_norm is None else max_grad_norm
        self.parameters = list(policy.parameters())
        ends = np.cumsum([p.numel() for p in self.parameters])
        count = len(ends) if num_apart is None else int((ends <= num_apart).sum())
        self.clipped = [part for part in (self.parameters[:count], self.parameters[count:]) if part]  # each by its own norm
        self.adam = torch.optim.Adam([{"params": part} for part in sharded.by_kind(self.parameters)], eps=adam_eps)
        self.rng = np.random.default_rng(seed)

    def run_epochs(self, batch: Batch, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, PolicyShift]:
        """Make num_epochs passes over batch; returns statistics (E, M, 7) as ``Statistics``, and the shift after each epoch.

        Raises: NonFiniteStep if a loss or a gradient is NaN or infinite; a step with such a gradient is not taken.
        """
        rows, shifts = [], []
        for _ in range(num_epochs):
            rows.append(self._epoch(batch, lr, kl_coef))
            shifts.append(self.policy.measure_shift(batch))
        return torch.stack(rows), PolicyShift.stack(shifts)

    def _epoch(self, batch: Batch, lr: float, kl_coef: float) -> Tensor:
        for group in self.adam.param_groups:
            group["lr"] = lr
        minibatches = batch.minibatches()
        order = self.rng.permutation(len(minibatches))
        rows = torch.stack([self._step(minibatches[i], batch, kl_coef) for i in order])
        sums, largest = distributed.all_reduce_sum(rows[:, [0, 1, 3, 4]]), distributed.all_reduce_max(rows[:, 2:3])
        table = torch.cat([sums[:, :2], largest, sums[:, 2:], rows[:, 5:]], 1)
        bad = ~table.isfinite().all(1)
        if bad.any():
            raise _non_finite_step(minibatches[order[int(bad.nonzero()[0])]], batch)
        return table

    def _step(self, minibatch: Minibatch, batch: Batch, kl_coef: float) -> Tensor:
        self.adam.zero_grad()
        if self.normalize:
            advantage = batch.samples.advantage
            own = standardize(advantage[minibatch.indices])
            batch = batch.with_advantage(advantage.index_copy(0, minibatch.indices, own))
        policy_loss, value_loss, largest, num_outside, num_samples = torch.zeros(5)
        whole = gate_batch(self.policy, batch, minibatch.views, self.objective)
        for view in minibatch.views:
            total, parts = self.loss(self.policy.forward(view), batch.at(view), kl_coef=kl_coef, batch=whole)
            torch.autograd.backward(total)
            policy_loss += parts.policy.cpu()
            value_loss += parts.value.cpu()
            largest = largest.maximum(parts.log_ratio_max.cpu())
            num_outside += parts.num_outside.cpu()
            num_samples += parts.num_samples.cpu()
        sharded.sum_gradients(self.parameters)
        norm, *others = [sharded.clip_gradients(part, self.limit).cpu() for part in self.clipped]
        norm = norm + 0 * sum(others)  # the actor's if the critic is clipped separately; NaN if the critic's is not finite
        if not norm.isfinite():  # then in every process, since the norms are those of all gradients
            raise _non_finite_step(minibatch, batch)
        self.adam.step()
        clipped = (norm > self.limit).float()
        return torch.stack(Statistics(policy_loss, value_loss, largest, num_outside, num_samples, norm, clipped))

    def state_dict(self) -> State:
        moments = [{key: sharded.for_file(x) for key, x in self.adam.state[p].items()} for p in self.parameters]
        return {"adam": moments, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: State) -> None:
        """Restore a state that was written by any number of processes."""
        saved = cast(list[dict[str, Tensor]], state["adam"])
        for p, moments in zip(self.parameters, saved, strict=True):
            self.adam.state[p] = {key: x if key == "step" else sharded.fit(x, p) for key, x in moments.items()}
        self.rng.bit_generator.state = cast(Mapping[str, object], state["rng"])


def _non_finite_step(minibatch: Minibatch, batch: Batch) -> NonFiniteStep:
    return NonFiniteStep("a gradient step", [(view, batch.at(view)) for view in minibatch.views])
