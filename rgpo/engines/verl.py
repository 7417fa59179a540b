"""Our gates as the policy loss `rgpo` in verl's registry.

    actor_rollout_ref.model.external_lib=rgpo.engines.verl
    actor_rollout_ref.actor.policy_loss._target_=rgpo.engines.verl.GatedPolicyLossConfig
    actor_rollout_ref.actor.policy_loss.loss_mode=rgpo
    '+actor_rollout_ref.actor.policy_loss.parts="gate=sigmoid gate.sharpness=20"'

Every process that loads the model, Ray workers included, imports external_lib, and importing this module registers the loss.
Reduction (`loss_agg_mode`), rollout correction, entropy bonus and KL to the reference (`use_kl_loss`) are verl's. Gates whose
bounds depend on a batch see one micro-batch at a time. Adaptive gates and penalties are rejected, since verl's workers neither
share nor save their state.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.workers.config import PolicyLossConfig

from rgpo.core.sequence import RATIOS, RatioLevel
from rgpo.engines.parts import GateParts, compose_parts, warn_untried
from rgpo.engines.statistics import Window
from rgpo.errors import ConfigError, require
from rgpo.learning.loss import GateInputs

NAME = "rgpo"
TRIED = ("0.9.1",)
LARGEST = 1e6  # replaces an infinite tail index, because verl averages metrics over micro-batches
METRICS = (
    *("kl/old_k1", "kl/old_k2", "kl/old_k3", "weight/relative_mean", "ess/ratio", "ess/weight"),
    *("ratio/min", "ratio/max", "ratio/abs_log_max", "ratio/tail_index"),
)


class ActorConfig(Protocol):
    """The part of verl's actor settings that a policy loss reads."""

    policy_loss: PolicyLossConfig
    global_batch_info: Mapping[str, object]


@functools.cache
def _parts(words: str) -> GateParts:
    """Build the parts selected by rgpo-run arguments; cached.

    Raises: ConfigError for invalid arguments, or for parts that verl's policy loss does not support.
    """
    parts = compose_parts(words, kind="language")
    parts.refuse_reference("verl")
    if parts.penalty.reward_coef:
        raise ConfigError("penalty=reward_kl: verl has a KL in the reward of its own; set algorithm.use_kl_in_reward.")
    divergence = parts.penalty.divergence
    if divergence is not None and divergence.estimator == "exact":
        raise ConfigError("penalty.estimator=exact: verl stores no distributions; use penalty.estimator=unbiased.")
    for axis, state in parts.state_dict().items():
        require(not state, axis, parts.describe()[axis], "adapts, but verl keeps no state of a policy loss; choose a fixed one.")
    return parts


@dataclass
class GatedPolicyLossConfig(PolicyLossConfig):
    """verl's settings of a policy loss, extended by ours: rgpo-run arguments (``parts``) and the ratio passed to the gate.

    ratio and ratio_clip are the arguments of ``rgpo.core.sequence.RatioLevel``.

    Raises: ConfigError if parts or ratio cannot be used.
    """

    loss_mode: str = NAME
    parts: str = ""
    ratio: str = "token"
    ratio_clip: list[float] | None = None

    def __post_init__(self) -> None:
        require(self.ratio in RATIOS, "policy_loss.ratio", self.ratio, f"must be one of {', '.join(RATIOS)}.")
        RatioLevel(self.ratio, self.ratio_clip)
        _parts(self.parts)


@register_policy_loss(NAME)  # type: ignore[untyped-decorator]  # verl has no types
def gated_policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: ActorConfig | None = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """-g(d) A + coef KL of each token, reduced by verl's ``agg_loss``, and our diagnostics of the micro-batch; inputs (B, T).

    Raises: ConfigError if policy_loss is not a GatedPolicyLossConfig.
    """
    settings = None if config is None else config.policy_loss
    if config is None or not isinstance(settings, GatedPolicyLossConfig):
        target = "rgpo.engines.verl.GatedPolicyLossConfig"
        raise ConfigError(f"policy_loss.loss_mode={NAME}: has no gate; set policy_loss._target_={target} and policy_loss.parts.")
    parts, live = _parts(settings.parts), response_mask.bool()
    losses, seen = parts.losses(
        log_prob[live],
        old_log_prob[live],
        advantages[live],
        correction=None if rollout_is_weights is None else rollout_is_weights.expand_as(log_prob)[live],
        sequence_mask=None if settings.ratio == "token" else live,
        ratio=RatioLevel(settings.ratio, settings.ratio_clip),
    )
    per_token = torch.zeros_like(log_prob).masked_scatter(live, losses.to(log_prob.dtype))
    loss = agg_loss(loss_mat=per_token, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    return loss, _metrics(parts, (log_prob - old_log_prob)[live], seen)


@torch.no_grad()
def _metrics(parts: GateParts, d_old: Tensor, seen: GateInputs) -> dict[str, float]:
    """Diagnostics with the same names for every micro-batch, as verl requires; zeros for one without tokens."""
    if not len(d_old):
        return {f"actor/{name}": 0.0 for name in ("ppo_kl", *METRICS)}
    window = Window()
    window.add(d_old, d_old, torch.zeros_like(d_old), seen)
    found = window.take(parts.gate, reference=False)
    metrics = {f"actor/{name}": min(found.get(name, LARGEST), LARGEST) for name in METRICS}
    return metrics | {"actor/ppo_kl": found["kl/old_k1"]}


warn_untried("verl", TRIED)
