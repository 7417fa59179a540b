"""Our gates as the policy loss `rgpo` of verl's registry.

    actor_rollout_ref.model.external_lib=rgpo.engines.verl
    actor_rollout_ref.actor.policy_loss._target_=rgpo.engines.verl.GatedPolicyLossConfig
    actor_rollout_ref.actor.policy_loss.loss_mode=rgpo
    '+actor_rollout_ref.actor.policy_loss.parts="gate=sigmoid gate.sharpness=20"'

external_lib is imported by every process that loads the model, Ray workers included, and importing this module adds the loss.
Reduction (`loss_agg_mode`), rollout correction, entropy bonus and KL from the reference (`use_kl_loss`) are verl's. Bounds of a
batch are those of a micro-batch. Nothing that adapts is accepted, since verl's workers neither share nor save its state.
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
LARGEST = 1e6  # in the place of an infinite tail index, because verl averages the metrics of all micro-batches
METRICS = (
    *("kl/old_k1", "kl/old_k2", "kl/old_k3", "weight/relative_mean", "ess/ratio", "ess/weight"),
    *("ratio/min", "ratio/max", "ratio/abs_log_max", "ratio/tail_index"),
)


class ActorConfig(Protocol):
    """The part of verl's settings of an actor that a loss reads."""

    policy_loss: PolicyLossConfig
    global_batch_info: Mapping[str, object]


@functools.cache
def _parts(words: str) -> GateParts:
    """The parts that words select.

    Raises: ConfigError also for what verl's policy loss cannot serve.
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
    """verl's settings of a policy loss with ours: words of rgpo-run, and the ratio that the gate sees.

    ratio and ratio_clip are those of ``rgpo.core.sequence.RatioLevel``.

    Raises: ConfigError for words or a ratio that cannot be used.
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
    """-g(d) A + coef KL of each token, reduced by verl's ``agg_loss``, and our diagnostics of the micro-batch; (B, T) each.

    Raises: ConfigError for a policy_loss that has no gate.
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
    """The same names in every micro-batch, as verl needs them; zeros for one without tokens."""
    if not len(d_old):
        return {f"actor/{name}": 0.0 for name in ("ppo_kl", *METRICS)}
    window = Window()
    window.add(d_old, d_old, torch.zeros_like(d_old), seen)
    found = window.take(parts.gate, reference=False)
    metrics = {f"actor/{name}": min(found.get(name, LARGEST), LARGEST) for name in METRICS}
    return metrics | {"actor/ppo_kl": found["kl/old_k1"]}


warn_untried("verl", TRIED)
