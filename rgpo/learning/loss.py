"""The loss of the gate family, shared by control and language: pure functions of a forward pass and its samples, (n,) each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rgpo.core.gate import GateBatch
from rgpo.core.kl_penalty import Divergence
from rgpo.core.sequence import RatioLevel, keep_near
from rgpo.core.surrogate import Objective
from rgpo.learning.samples import PolicyOutput, Samples

CLIP_RANGE = 0.2, 0.2  # published PPO's, for gates that have none


class Loss(Protocol):
    """A ``GateLoss`` with the coefficients of value and entropy bound."""

    def __call__(
        self, out: PolicyOutput, samples: Samples, *, kl_coef: Tensor | float, batch: GateBatch | None = None
    ) -> tuple[Tensor, LossParts]: ...


class LossParts(NamedTuple):
    """Logged scalars of a loss."""

    policy: Tensor
    value: Tensor
    log_ratio_max: Tensor  # largest |d| among the gate's inputs, nats
    num_outside: Tensor  # samples whose ratio, as the gate sees it, is outside the clip range
    num_samples: Tensor


def standardize(advantage: Tensor) -> Tensor:
    """(A - mean)/(std + 1e-8) with the unbiased std; 0 for a single sample."""
    if len(advantage) == 1:
        return torch.zeros_like(advantage)
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def average(x: Tensor, weight: Tensor | None) -> Tensor:
    """sum weight x; the mean of x if weight is None."""
    return x.mean() if weight is None else (weight * x).sum()


def value_loss(value: Tensor, target: Tensor, old: Tensor, clip: float | None) -> Tensor:
    """max((V - target)^2, (V_clipped - target)^2)/2 per sample, V_clipped = old + clamp(V - old, +-clip); clip None: no max."""
    squared = (value - target).square()
    if clip is not None:
        squared = torch.maximum(squared, (old + (value - old).clamp(-clip, clip) - target).square())
    return squared / 2


class GateInputs(NamedTuple):
    """Inputs of the gates for each sample, (n,) each."""

    d_old: Tensor  # nats
    d_ref: Tensor  # nats, d_old if there is no reference policy
    advantage: Tensor
    logp_old: Tensor  # nats

    def batch(self, weight: Tensor | None) -> GateBatch:
        """These samples as those of a whole gradient step."""
        return GateBatch(self.d_old.detach(), self.advantage, self.logp_old, weight)


def gate_inputs(out: PolicyOutput, samples: Samples) -> GateInputs:
    """Inputs of the gates; a sampler's correction and the off-policy mask multiply the advantages."""
    logp_old = samples.logp_old
    d_old = out.logp - logp_old
    d_ref = d_old if samples.logp_ref is None else out.logp - samples.logp_ref
    advantage, mask = samples.advantage, samples.sequence_mask
    if samples.off_policy is not None and mask is not None:
        advantage = advantage * keep_near(d_old + samples.off_policy.gap, advantage, mask, samples.off_policy.max_kl)
    if mask is not None:
        level = samples.ratio or RatioLevel()
        d_old, d_ref = (level(d, samples.advantage, mask) for d in (d_old, d_ref))
        logp_old = level.of_sequence(logp_old, mask)
    if samples.correction is not None:
        advantage = advantage * samples.correction
    return GateInputs(d_old, d_ref, advantage, logp_old)


def sample_losses(
    out: PolicyOutput,
    samples: Samples,
    *,
    objective: Objective,
    divergence: Divergence | None = None,
    kl_coef: Tensor | float = 0.0,
    batch: GateBatch | None = None,
) -> tuple[Tensor, GateInputs]:
    """Surrogate of each sample (n,), and the inputs of the gates.

    kl_coef multiplies the divergence, which is that of the sample itself even if the gates see the ratio of its sequence;
    divergence None: no KL term. A sampler's correction multiplies advantages, and also the divergence if that is reweighted.
    batch: all samples of the gradient step; None: these.
    """
    d_old = out.logp - samples.logp_old
    if divergence is None:
        kl, kl_coef = torch.zeros_like(d_old), 0.0
    else:
        d_ref = d_old if samples.logp_ref is None else out.logp - samples.logp_ref
        kl = divergence(d_old, d_ref, out.kl_old)
        if divergence.estimator == "unbiased" and samples.correction is not None:
            kl = kl * samples.correction
    seen = gate_inputs(out, samples)
    loss, _ = objective(
        seen.d_old,
        seen.d_ref,
        seen.advantage,
        kl,
        kl_coef=kl_coef,
        logp_old=seen.logp_old,
        batch=batch or seen.batch(samples.weight),
    )
    return loss, seen


def policy_loss(
    out: PolicyOutput,
    samples: Samples,
    *,
    objective: Objective,
    divergence: Divergence | None = None,
    kl_coef: Tensor | float = 0.0,
    batch: GateBatch | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean of ``sample_losses``, and the log ratios (n,) that the gate saw."""
    losses, seen = sample_losses(out, samples, objective=objective, divergence=divergence, kl_coef=kl_coef, batch=batch)
    return average(losses, samples.weight), seen.d_old


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
    clip_range: tuple[float, float] = CLIP_RANGE,
    batch: GateBatch | None = None,
) -> tuple[Tensor, LossParts]:
    """policy loss + vf_coef value loss - ent_coef entropy, and its parts; without a critic the value loss is 0."""
    actor, log_ratio = policy_loss(out, samples, objective=objective, divergence=divergence, kl_coef=kl_coef, batch=batch)
    total, critic = actor, torch.zeros_like(actor)
    if out.value is not None:
        critic = average(value_loss(out.value, samples.value_target, samples.value_old, value_clip), samples.weight)
        total = total + vf_coef * critic
    if ent_coef != 0:
        assert out.entropy is not None
        total = total - ent_coef * average(out.entropy, samples.weight)
    d = log_ratio.detach()
    largest = d.abs().max() if len(d) else d.new_zeros(())
    outside = ((d < math.log1p(-clip_range[0])) | (d > math.log1p(clip_range[1]))).to(d.dtype).sum()
    return total, LossParts(actor.detach(), critic.detach(), largest, outside, d.new_full((), len(d)))


@dataclass(frozen=True, kw_only=True)
class GateLoss:
    """``loss`` with an algorithm's gates and divergence bound; the function that an update differentiates."""

    objective: Objective
    divergence: Divergence | None

    @property
    def exact_kl(self) -> bool:
        """True if it reads the exact KL(old || new) of every sample."""
        return self.divergence is not None and self.divergence.estimator == "exact"

    @property
    def clip_range(self) -> tuple[float, float]:
        """The gate's (eps_low, eps_high), if it clips ratios outside [1 - eps_low, 1 + eps_high]; else PPO's."""
        gate = getattr(self.objective, "gate", None)
        low, high = (getattr(gate, key, None) for key in ("eps_low", "eps_high"))
        return (low, high) if isinstance(low, float) and isinstance(high, float) else CLIP_RANGE

    def __call__(
        self,
        out: PolicyOutput,
        samples: Samples,
        *,
        kl_coef: Tensor | float,
        vf_coef: float,
        ent_coef: float,
        value_clip: float | None,
        batch: GateBatch | None = None,
    ) -> tuple[Tensor, LossParts]:
        return loss(
            out,
            samples,
            objective=self.objective,
            divergence=self.divergence,
            kl_coef=kl_coef,
            vf_coef=vf_coef,
            ent_coef=ent_coef,
            value_clip=value_clip,
            clip_range=self.clip_range,
            batch=batch,
        )
