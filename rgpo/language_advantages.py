"""Credit for completions: rewards to advantages. Pure numpy, float64.

Names: G completions a prompt (the group), B = prompts x G completions with those of a prompt side by side, T tokens,
right-padded. mask is 1 on a completion's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpo.advantages import generalized_advantage
from rgpo.batch import Array
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


@dataclass(frozen=True, kw_only=True)
class GroupRelative:
    """A_i = (R_i - mean R) / (std R + eps) within the group: GRPO (Shao et al. 2024, arXiv 2402.03300, Sec. 4.1.2).

    std is unbiased, as in TRL. scale: group takes the group's std, batch that of all rewards (arXiv 2508.08221), none
    does not divide at all, which is Dr. GRPO (arXiv 2503.20783). A dead group gets exactly 0, whatever the rounding.
    """

    scale: str = "group"
    eps: float = 1e-4

    gamma: ClassVar[float] = 1.0  # the reward comes once, at the end
    may_be_centred: ClassVar[bool] = True
    of_completions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.scale in SCALES, "advantage.scale", self.scale, f"choose {', '.join(SCALES[:-1])} or {SCALES[-1]}.")
        require(0 < self.eps < np.inf, "advantage.eps", self.eps, "must be a positive, finite number.")

    def __call__(self, reward_B: Array, group_size: int) -> Array:
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

    gamma: ClassVar[float] = 1.0
    may_be_centred: ClassVar[bool] = True
    of_completions: ClassVar[bool] = True

    def __call__(self, reward_B: Array, group_size: int) -> Array:
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


@dataclass(frozen=True, kw_only=True)
class TokenGAE:
    """Generalised advantage estimation over tokens (Schulman et al. 2016, Eq. 16; Ouyang et al. 2022 for language).

    A_t = sum_l (gamma lam)^l delta_{t+l} up to the last token, delta_t = r_t + gamma V_{t+1} - V_t with V = 0 past the end.
    bootstrap_truncated: a completion cut by its length limit has no value of its last state, so V of the last token stands
    in for it (our choice); false treats the cut as the end, as published RLHF does, where the score already judged the cut.
    """

    gamma: float = 1.0
    lam: float = 0.95
    bootstrap_truncated: bool = False

    may_be_centred: ClassVar[bool] = True
    of_completions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 <= self.gamma <= 1, "advantage.gamma", self.gamma, "must lie in [0, 1].")
        require(0 <= self.lam <= 1, "advantage.lam", self.lam, "must lie in [0, 1].")

    def __call__(self, reward_BT: Array, value_BT: Array, mask_BT: Array, truncated_B: Array) -> tuple[Array, Array]:
        """Advantage and value target, both (B, T) float64, 0 under mask 0. ValueError for a mask with gaps.

        reward_BT: the score at the last token and any penalty per token. value_BT: V of the state before each token.
        """
        live_BT, last_BT = np.asarray(mask_BT, bool), last_token(mask_BT)
        reward_BT, value_BT = (np.where(live_BT, np.asarray(x, np.float64), 0.0) for x in (reward_BT, value_BT))
        next_value_BT = np.where(last_BT, value_BT, np.pad(value_BT[:, 1:], ((0, 0), (0, 1))))
        bootstrapped_B1 = np.asarray(truncated_B, bool)[:, None] & self.bootstrap_truncated
        over_time = (x.T for x in (reward_BT, value_BT, next_value_BT, last_BT & ~bootstrapped_B1, last_BT))
        advantage_BT = generalized_advantage(*over_time, gamma=self.gamma, lam=self.lam).T
        return advantage_BT, advantage_BT + value_BT
