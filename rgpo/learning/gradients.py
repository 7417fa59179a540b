"""Policy gradients computed outside of Adam: one per group of samples, and the trust-region problem of a natural gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rgpo import distributed
from rgpo.core.gate import GateBatch
from rgpo.core.rollout import Array
from rgpo.core.surrogate import GateObjective, Objective
from rgpo.learning import sharded
from rgpo.learning.loss import gate_inputs, policy_loss
from rgpo.learning.types import Batch, Policy, View


def trainable(policy: Policy) -> tuple[Tensor | None, list[Tensor]]:
    """A copy of the flat parameters (None for a module), and the leaves that the actor's gradient is taken with respect to."""
    if policy.flat is not None:
        flat = policy.flat.clone().requires_grad_()
        return flat, [flat]
    leaves, count = [], 0
    for p in policy.parameters():
        if count < policy.num_actor_parameters:
            leaves.append(p)
            count += p.numel()
    return None, leaves


def group_gradients(policy: Policy, batch: Batch, objective: Objective, groups: Array) -> Iterator[Tensor]:
    """The actor's gradient (P,) of the surrogate without its KL term, averaged over each group of samples; groups (M, b)."""
    flat, leaves = trainable(policy)
    for index in groups:
        for p in leaves:
            p.grad = None
        part = policy.subset(batch, index)
        whole = gate_batch(policy, part, local_views(part), objective)
        for view in local_views(part):
            out = policy.forward(view, flat=flat, entropy=False, value=False)
            loss, _ = policy_loss(out, part.at(view), objective=objective, batch=whole)
            torch.autograd.backward(loss)  # FSDP does not support torch.autograd.grad
        sharded.sum_gradients(leaves)
        yield sharded.flatten([p.grad for p in leaves if p.grad is not None])[: policy.num_actor_parameters]


def local_views(batch: Batch) -> list[View]:
    """This process's forward passes of a whole batch."""
    return [view for minibatch in batch.minibatches() for view in minibatch.views]


@torch.no_grad()
def gate_batch(policy: Policy, batch: Batch, views: Sequence[View], objective: Objective) -> GateBatch | None:
    """All samples of a gradient step as its gate sees them, from forward passes of all processes without gradient.

    views: this process's forward passes of the step. None if the gate needs no batch, or a single forward pass is the batch.
    """
    alone = len(views) == 1 and distributed.world_size() == 1
    if alone or not isinstance(objective, GateObjective) or not objective.needs_batch:
        return None
    parts = []
    for view in views:
        samples = batch.at(view)
        seen = gate_inputs(policy.forward(view, entropy=False, value=False), samples)
        parts.append(seen.batch(samples.weight))
    device = batch.samples.logp_old.device
    return _concatenated(distributed.all_gather(_concatenated(parts).to("cpu"))).to(device)


def _concatenated(parts: Sequence[GateBatch]) -> GateBatch:
    def column(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [x for x in values if x is not None]
        return torch.cat(known) if known else None

    return GateBatch(
        torch.cat([part.log_ratio for part in parts]),
        torch.cat([part.advantage for part in parts]),
        column([part.logp_old for part in parts]),
        column([part.weight for part in parts]),
    )


class TrustRegionProblem:
    """The mean surrogate loss and KL(old || new) as functions of a step of the actor from its current parameters.

    F v, the Hessian of the mean KL times v, takes a second backward pass, whose graph stays in memory as long as this object.
    Attention is computed by plain matrix products, the only implementation that can be differentiated twice on all devices.
    """

    def __init__(self, policy: Policy, batch: Batch, objective: Objective) -> None:
        self.policy, self.batch, self.objective = policy, batch, objective
        self.flat, self.leaves = trainable(policy)
        self.size = policy.num_actor_parameters
        self._slopes: list[Tensor] = []  # gradient (P,) of each forward pass's share of the mean KL
        gradient = torch.zeros(self.size, device=self.leaves[0].device)
        total = torch.zeros((), dtype=torch.float64)
        with sdpa_kernel(SDPBackend.MATH):
            self._whole = gate_batch(policy, batch, local_views(batch), objective)  # bounds are fixed at the start
            for view in local_views(batch):
                loss, kl = self._shares(view, self.flat)
                total += loss.detach().cpu()
                gradient -= self._flatten(torch.autograd.grad(loss, self.leaves, retain_graph=True))
                if kl is not None:
                    self._slopes.append(self._flatten(torch.autograd.grad(kl, self.leaves, create_graph=True)))
        self.loss = float(distributed.all_reduce_sum(total))
        self.gradient = distributed.all_reduce_sum(gradient)  # of minus the loss, (P,)

    def _shares(self, view: View, flat: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """This forward pass's share of the mean loss and of the mean KL; None if it has no sample with a KL."""
        out = self.policy.forward(view, flat=flat, kl=True, entropy=False, value=False)
        loss, _ = policy_loss(out, self.batch.at(view), objective=self.objective, batch=self._whole)
        assert out.kl_old is not None
        return loss, out.kl_old.sum() / self.batch.num_kl if len(out.kl_old) else None

    def _flatten(self, gradients: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.flatten() for x in gradients])[: self.size]

    def fisher_product(self, v: Tensor) -> Tensor:
        """F v, (P,) -> (P,)."""
        total = torch.zeros_like(v)
        with sdpa_kernel(SDPBackend.MATH):
            for slope in self._slopes:
                total += self._flatten(torch.autograd.grad(slope.dot(v), self.leaves, retain_graph=True))
        return distributed.all_reduce_sum(total)

    @torch.no_grad()
    def evaluate(self, step: Tensor) -> tuple[float, float]:
        """Loss and mean KL after a trial step (P,), which is then undone."""
        own = self._own()
        before = [p.clone() for p in own]
        self.move(step)
        shares = [self._shares(view, None) for view in local_views(self.batch)]
        for p, value in zip(own, before, strict=True):
            p.copy_(value)
        sums = [sum(loss.item() for loss, _ in shares), sum(kl.item() for _, kl in shares if kl is not None)]
        loss, kl = distributed.all_reduce_sum(torch.tensor(sums, dtype=torch.float64)).tolist()
        return loss, kl

    @torch.no_grad()
    def move(self, step: Tensor) -> None:
        """Add the step (P,) to the actor's parameters."""
        start = 0
        for p in self._own():
            part = step[start : start + p.numel()]
            p.view(-1)[: len(part)] += part
            start += p.numel()

    def _own(self) -> list[Tensor]:
        """The policy's own tensors that a step changes."""
        return self.leaves if self.policy.flat is None else [self.policy.flat]
