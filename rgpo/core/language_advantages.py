"""Credit for completions: rewards to advantages. Pure numpy, float64. With a critic, GAE over tokens is rgpo.core.advantages.GAE.

Names: G completions a prompt (the group), B = prompts x G completions with those of a prompt side by side, T tokens,
right-padded. mask is 1 on a completion's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpo.core.advantages import check_normalize
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import require

SCALES = ("group", "batch", "none")


def grouped(reward_B: Array, group_size: int) -> Array:
    """Rewards (prompts, G) float64. ConfigError for a group of one, or where the groups do not come out even."""
    require(group_size > 1, "group_size", group_size, "a group needs at least 2 completions to compare.")
    even = len(reward_B) % group_size == 0
    require(even, "group_size", group_size, f"must divide the number of completions, {len(reward_B)}.")
    return np.asarray(reward_B, np.float64).reshape(-1, group_size)


def dead_groups(reward_B: Array, group_size: int) -> Array:
    """Which groups have equal rewards throughout, (prompts,) bool: they teach nothing, and their share belongs in the log."""
    reward = grouped(reward_B, group_size)
    dead: Array = reward.max(1) == reward.min(1)
    return dead


def spread(advantage_B: Array, rollout: Rollout) -> tuple[Array, Array]:
    """The advantage of a completion at each of its tokens, and value targets 0, both (T, E)."""
    advantage_TE = advantage_B * rollout.live()
    return advantage_TE, np.zeros_like(advantage_TE)


@dataclass(frozen=True, kw_only=True)
class GroupRelative:
    """A_i = (R_i - mean R) / (std R + eps) within the group: GRPO (Shao et al. 2024, arXiv 2402.03300, Sec. 4.1.2).

    std is unbiased, as in TRL. scale: group takes the group's std, batch that of all rewards (arXiv 2508.08221), none
    does not divide at all, which is Dr. GRPO (arXiv 2503.20783). A dead group gets exactly 0, whatever the rounding.
    """

    scale: str = "group"
    eps: float = 1e-4
    normalize: str = "none"  # what the update standardises over besides: minibatch, batch or none

    gamma: ClassVar[float] = 1.0  # the reward comes once, at the end
    needs_groups: ClassVar[bool] = True
    needs_critic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_normalize(self.normalize)
        require(self.scale in SCALES, "advantage.scale", self.scale, f"choose {', '.join(SCALES[:-1])} or {SCALES[-1]}.")
        require(0 < self.eps < np.inf, "advantage.eps", self.eps, "must be a positive, finite number.")

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Advantage of each completion at each of its tokens, and no value target, both (T, E) float64."""
        return spread(self.compare(rollout.reward.sum(0), rollout.group_size), rollout)

    def compare(self, reward_B: Array, group_size: int) -> Array:
        """Advantage (B,) float64. ConfigError for a group that cannot be compared."""
        reward = grouped(reward_B, group_size)
        centred: Array = reward - reward.mean(1, keepdims=True)
        if self.scale == "group":
            centred /= reward.std(1, ddof=1, keepdims=True) + self.eps
        elif self.scale == "batch":
            centred /= reward.std(ddof=1) + self.eps
        centred[dead_groups(reward_B, group_size)] = 0.0
        return centred.ravel()


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """A_i = R_i - mean of the others' R = G/(G-1) (R_i - mean R): RLOO (Kool et al. 2019; Ahmadian et al. 2024).

    The baseline does not depend on completion i, so the gradient is unbiased. A dead group gets exactly 0.
    """

    normalize: str = "none"  # what the update standardises over besides: minibatch, batch or none

    gamma: ClassVar[float] = 1.0
    needs_groups: ClassVar[bool] = True
    needs_critic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_normalize(self.normalize)

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Advantage of each completion at each of its tokens, and no value target, both (T, E) float64."""
        return spread(self.compare(rollout.reward.sum(0), rollout.group_size), rollout)

    def compare(self, reward_B: Array, group_size: int) -> Array:
        """Advantage (B,) float64. ConfigError for a group that cannot be compared."""
        reward = grouped(reward_B, group_size)
        advantage: Array = reward - (reward.sum(1, keepdims=True) - reward) / (group_size - 1)
        advantage[dead_groups(reward_B, group_size)] = 0.0
        return advantage.ravel()


def last_token(mask_BT: Array) -> Array:
    """Where each completion's last token stands, (B, T) bool. ValueError unless every row of mask is ones, then zeros."""
    live_BT = np.asarray(mask_BT, bool)
    after_BT = np.pad(live_BT[:, 1:], ((0, 0), (0, 1)))
    if (after_BT & ~live_BT).any():
        raise ValueError("mask_BT: has a token after a gap, completions must be right-padded.")
    last_BT: Array = live_BT & ~after_BT
    return last_BT


def token_rewards(score_B: Array, kl_BT: Array, mask_BT: Array, *, kl_coef: float) -> Array:
    """r_t = -kl_coef kl_t + 1[t is the last token] score, (B, T) float64, 0 under mask 0 (Ziegler et al. 2019).

    kl_BT: log pi_old/pi_ref of the tokens (k1), nats. ValueError for a mask with gaps.
    """
    penalty_BT = np.where(np.asarray(mask_BT, bool), -kl_coef * np.asarray(kl_BT, np.float64), 0.0)
    return penalty_BT + np.where(last_token(mask_BT), np.asarray(score_B, np.float64)[:, None], 0.0)


def token_steps(reward_BT: Array, value_BT: Array, mask_BT: Array, truncated_B: Array) -> dict[str, Array]:
    """Completions as a rollout of T steps in B environments: a Rollout's reward, value, next_value, terminated, done, mask.

    reward_BT: the score at the last token and any penalty per token. value_BT: V of the state before each token. The last
    token is done; it is terminated unless the length limit cut the completion (truncated_B). No value of the state after a
    cut exists, so V of the last token stands in for it (our choice). ValueError for a mask with gaps.
    """
    live_BT, last_BT = np.asarray(mask_BT, bool), last_token(mask_BT)
    reward_BT, value_BT = (np.where(live_BT, np.asarray(x, np.float64), 0.0) for x in (reward_BT, value_BT))
    ended_BT = last_BT & ~np.asarray(truncated_B, bool)[:, None]
    next_value_BT = np.where(last_BT, np.where(ended_BT, 0.0, value_BT), np.pad(value_BT[:, 1:], ((0, 0), (0, 1))))
    steps = {"reward": reward_BT, "value": value_BT, "next_value": next_value_BT}
    steps |= {"terminated": ended_BT, "done": last_BT | ~live_BT, "mask": live_BT}
    return {name: np.ascontiguousarray(x.T) for name, x in steps.items()}
