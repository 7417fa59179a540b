"""The loss of the gate family, once for control and language: pure functions of a forward pass and its samples, (n,) each."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rgpo.core.kl_penalty import Divergence
from rgpo.core.sequence import sequence_log_ratio
from rgpo.learning.types import Objective, PolicyOutput, Samples


class Loss(Protocol):
    """``loss`` with the objective, the divergence and its own coefficients bound."""

    def __call__(self, out: PolicyOutput, samples: Samples, *, kl_coef: Tensor | float) -> tuple[Tensor, LossParts]: ...


class LossParts(NamedTuple):
    """Logged scalars of a loss."""

    policy: Tensor
    value: Tensor
    log_ratio_max: Tensor  # largest |d| that the gate saw, nats


def standardize(advantage: Tensor) -> Tensor:
    """(A - mean)/(std + 1e-8) with the unbiased std; 0 for a single sample."""
    if len(advantage) == 1:
        return torch.zeros_like(advantage)
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def average(x: Tensor, weight: Tensor | None) -> Tensor:
    """sum of weight x; the mean without weights."""
    return x.mean() if weight is None else (weight * x).sum()


def value_loss(value: Tensor, target: Tensor, old: Tensor, clip: float | None) -> Tensor:
    """max((V - target)^2, (V_clipped - target)^2)/2 per sample, V_clipped = old + clamp(V - old, +-clip); clip None: no max."""
    squared = (value - target).square()
    if clip is not None:
        squared = torch.maximum(squared, (old + (value - old).clamp(-clip, clip) - target).square())
    return squared / 2


def policy_loss(
    out: PolicyOutput,
    samples: Samples,
    *,
    objective: Objective,
    divergence: Divergence | None = None,
    kl_coef: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean surrogate, and the log ratios (n,) that the gate saw.

    kl_coef multiplies the divergence of each sample, whatever ratio the gates see; None: no KL term. A sampler's correction
    multiplies advantages, and the divergence if that is reweighted.
    """
    d_old = out.logp - samples.logp_old
    d_ref = d_old if samples.logp_ref is None else out.logp - samples.logp_ref
    if divergence is None:
        kl, kl_coef = torch.zeros_like(d_old), 0.0
    else:
        kl = divergence(d_old, d_ref, out.kl_old)
        if divergence.estimator == "unbiased" and samples.correction is not None:
            kl = kl * samples.correction
    if samples.sequence_mask is not None:
        d_old, d_ref = (sequence_log_ratio(d, samples.sequence_mask) for d in (d_old, d_ref))
    advantage = samples.advantage if samples.correction is None else samples.advantage * samples.correction
    loss, _ = objective(d_old, d_ref, advantage, kl, kl_coef=kl_coef)
    return average(loss, samples.weight), d_old


def loss(
    out: PolicyOutput,
    samples: Samples,
    *,
    objective: Objective,
    divergence: Divergence | None,
    kl_coef: Tensor | float,
    vf_coef: float,
    ent_coef: float,
    value_clip: float | None,
) -> tuple[Tensor, LossParts]:
    """policy loss + vf_coef value loss - ent_coef entropy, and its parts; without a critic the value loss is 0."""
    actor, log_ratio = policy_loss(out, samples, objective=objective, divergence=divergence, kl_coef=kl_coef)
    total, critic = actor, torch.zeros_like(actor)
    if out.value is not None:
        critic = average(value_loss(out.value, samples.value_target, samples.value_old, value_clip), samples.weight)
        total = total + vf_coef * critic
    if ent_coef != 0:
        assert out.entropy is not None
        total = total - ent_coef * average(out.entropy, samples.weight)
    largest = log_ratio.detach().abs().max() if len(log_ratio) else log_ratio.new_zeros(())
    return total, LossParts(actor.detach(), critic.detach(), largest)
