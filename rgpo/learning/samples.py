"""Per-sample data passed between batch, policy, loss and diagnostics.

Shapes: N samples (steps or tokens) of a batch, n of one forward pass, E epochs. Log-probabilities, KL divergences and entropies
are in nats. Nothing here imports torch, so that a configuration can be checked without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rgpo.core.sequence import RatioLevel

if TYPE_CHECKING:
    from torch import Tensor


class OffPolicy(NamedTuple):
    """Distance between old policy and sampler, for the off-policy sequence mask."""

    gap: Tensor  # (n,) log pi_old - log pi_sampler, nats
    max_kl: float  # nats per token


class Samples(NamedTuple):
    """Inputs of the loss for each sample; every tensor is (n,) unless noted."""

    logp_old: Tensor
    logp_ref: Tensor | None  # None if there is no reference policy
    advantage: Tensor
    value_target: Tensor
    value_old: Tensor
    weight: Tensor | None = None  # sums to 1 over a minibatch; None: 1/n each
    correction: Tensor | None = None  # multiplies the advantage if another policy drew the samples; None: 1
    sequence_mask: Tensor | None = None  # (b, t) bool whose True entries are the samples, row by row; None: the gate sees each
    # sample's own log ratio
    ratio: RatioLevel | None = None  # the ratio that the gate sees if there is a mask; None: the mean over its row
    off_policy: OffPolicy | None = None  # inputs of the off-policy sequence mask, which is computed at each step

    def at(self, index: Tensor, sequence_mask: Tensor | None) -> Samples:
        """The samples at index (n,), with the mask of their rows."""
        return Samples(
            self.logp_old[index],
            None if self.logp_ref is None else self.logp_ref[index],
            self.advantage[index],
            self.value_target[index],
            self.value_old[index],
            None if self.weight is None else self.weight[index],
            None if self.correction is None else self.correction[index],
            sequence_mask,
            self.ratio,
            None if self.off_policy is None else self.off_policy._replace(gap=self.off_policy.gap[index]),
        )


class PolicyOutput(NamedTuple):
    """Outputs of a forward pass for each sample, with gradients if they are enabled; None if not computed."""

    logp: Tensor  # (n,)
    entropy: Tensor | None  # (n,)
    value: Tensor | None  # (n,)
    kl_old: Tensor | None  # exact KL(old || new), (n,), or (m,) where the old distribution was stored for m samples only


class PolicyShift(NamedTuple):
    """The current policy compared with the one that collected the batch. Stacked over epochs, tensors have a leading axis E."""

    log_ratio: Tensor  # (N,)
    kl: Tensor  # (N,) exact KL(old || new) at each sample's state; (M,) where distributions were stored for M samples
    entropy: Tensor  # (N,) of the new policy
    gate_log_ratio: Tensor | None = None  # (N,) the gate's input if that is not log_ratio
    kl_ref: Tensor | None = None  # (M,) exact KL(new || reference) where there is a reference
    gate_logp_old: Tensor | None = None  # (N,) the gate's input if that is not the samples' logp_old

    @staticmethod
    def join(parts: Sequence[PolicyShift]) -> PolicyShift:
        """Concatenate shifts that are stacked over epochs."""
        return PolicyShift.stack([shift for part in parts for shift in part.epochs()])

    def epochs(self) -> list[PolicyShift]:
        """Unstack into the shifts after each epoch."""
        return [self._at(i) for i in range(len(self.kl))]

    def _at(self, i: int) -> PolicyShift:
        gate, ref, logp = (x if x is None else x[i] for x in (self.gate_log_ratio, self.kl_ref, self.gate_logp_old))
        return PolicyShift(self.log_ratio[i], self.kl[i], self.entropy[i], gate, ref, logp)

    @staticmethod
    def stack(epochs: Sequence[PolicyShift]) -> PolicyShift:
        """Stack the shifts after each epoch."""
        return PolicyShift(
            _stack([shift.log_ratio for shift in epochs]),
            _stack([shift.kl for shift in epochs]),
            _stack([shift.entropy for shift in epochs]),
            _stack_known([shift.gate_log_ratio for shift in epochs]),
            _stack_known([shift.kl_ref for shift in epochs]),
            _stack_known([shift.gate_logp_old for shift in epochs]),
        )


def _stack(columns: list[Tensor]) -> Tensor:
    import torch

    return torch.stack(columns)


def _stack_known(columns: list[Tensor | None]) -> Tensor | None:
    """The stacked columns; None if all are None."""
    known = [x for x in columns if x is not None]
    assert len(known) in (0, len(columns))
    return _stack(known) if known else None
