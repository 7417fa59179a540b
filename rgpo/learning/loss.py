"""Losses of an actor-critic at a flat parameter vector: pure, so that they differentiate, vectorise and compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rgpo.core.rollout import Batch

if TYPE_CHECKING:
    from rgpo.control.actor_critic import ActorCritic
    from rgpo.control.distributions import Distribution

Objective = Callable[..., Any]


def standardise(advantage: Tensor) -> Tensor:
    """(A - mean)/(std + 1e-8) with the unbiased std."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def value_loss(value: Tensor, target: Tensor, old: Tensor, clip: float | None) -> Tensor:
    """max((V - target)^2, (V_clipped - target)^2)/2 per sample, V_clipped = old + clamp(V - old, +-clip); clip None: no max."""
    squared = (value - target).square()
    if clip is not None:
        squared = torch.maximum(squared, (old + (value - old).clamp(-clip, clip) - target).square())
    return squared / 2


def policy_loss(
    new: Distribution,
    batch: Batch,
    advantage: Tensor,
    *,
    objective: Objective,
    kl_coef: Tensor | float = 0.0,
    penalised: bool = False,
) -> tuple[Tensor, Tensor]:
    """mean(surrogate) and the log ratio (N,); advantage (N,) as the gate sees it. penalised: KL in the graph."""
    logp = new.log_prob(batch.action)
    kl = new.kl_from(batch.old) if penalised else logp * 0
    out = objective(logp, batch.logp_old, batch.logp_old, advantage, kl_coef=kl_coef, kl=kl)
    return out.loss.mean(), out.log_ratio


def actor_critic_loss(
    flat: Tensor,
    batch: Batch,
    kl_coef: Tensor,
    *,
    policy: ActorCritic,
    objective: Objective,
    penalised: bool,
    normalize: bool,
    vf_coef: float,
    ent_coef: float,
    value_clip: float | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """policy loss + vf_coef value loss - ent_coef entropy; and (policy loss, value loss, max |d|). normalize: A per minibatch."""
    advantage = standardise(batch.advantage) if normalize else batch.advantage
    new, value = policy.forward(flat, batch.observation)
    actor, log_ratio = policy_loss(new, batch, advantage, objective=objective, kl_coef=kl_coef, penalised=penalised)
    critic = value_loss(value, batch.value_target, batch.value_old, value_clip).mean()
    total = actor + vf_coef * critic
    if ent_coef != 0:
        total = total - ent_coef * new.entropy().mean()
    return total, (actor, critic, log_ratio.abs().max())


def critic_loss(flat: Tensor, batch: Batch, kl_coef: Tensor, *, policy: ActorCritic) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The value loss alone, unclipped, in the shape of ``actor_critic_loss``."""
    loss = value_loss(policy.value(flat, batch.observation), batch.value_target, batch.value_old, None).mean()
    return loss, (loss * 0, loss, loss * 0)
