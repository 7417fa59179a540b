"""Advantage estimators map the rewards and values of a rollout to advantages and value targets. Pure numpy, float64.

Control rollouts and completions share one layout, (T, E): a completion is one environment and a token one step. Notation for
text: G completions per prompt (a group); B = prompts x G completions, those of a prompt adjacent; T tokens, right-padded;
mask is 1 on a completion's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from rgpo.core.ranges import POSITIVE, UNIT_INTERVAL, check_fields, one_of
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import require

NORMALIZE = one_of("minibatch", "batch", "none")


class Advantage(Protocol):
    """An estimator of advantages and value targets."""

    @property
    def gamma(self) -> float:
        """Discount."""
        ...

    @property
    def normalize(self) -> str:
        """The samples over which the update standardizes advantages: minibatch, batch or none."""
        ...

    @property
    def needs_groups(self) -> bool:
        """True if the estimator compares completions of the same prompt."""
        ...

    @property
    def needs_critic(self) -> bool:
        """True if the estimator reads values, so that a critic must be trained."""
        ...

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Advantage and value target, both (T, E) float64."""
        ...


def recurrence(decay: Array, drive: Array, start: Array) -> Array:
    """y_t = decay_t y_{t-1} + drive_t with y_{-1} = start; decay, drive (T, E), start (E,) -> (T, E) float64.

    Computed with Python floats: with the few environments of one process, a numpy operation per step would be slower.
    """
    columns = []
    for factors, terms, y in zip(decay.T.tolist(), drive.T.tolist(), start.tolist(), strict=True):
        column = []
        for factor, term in zip(factors, terms, strict=True):
            y = factor * y + term
            column.append(y)
        columns.append(column)
    return np.array(columns).T


def generalized_advantage(
    reward: Array, value: Array, next_value: Array, terminated: Array, done: Array, *, gamma: float, lam: float
) -> Array:
    """A_t = delta_t + gamma lam (1 - done_t) A_{t+1}, delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t).

    All arrays (T, E); next_value is V of the true next observation. Schulman et al. 2016, Eq. 16.
    """
    delta = reward + gamma * np.where(terminated, 0.0, next_value) - value  # unused values may be NaN
    carry = gamma * lam * ~done
    return recurrence(carry[::-1], delta[::-1], np.zeros(delta.shape[1]))[::-1].copy()  # torch takes no negative strides


@dataclass(frozen=True, kw_only=True)
class GAE:
    """Generalized advantage estimation; lam = 1 is the discounted return minus the value baseline (REINFORCE)."""

    gamma: float = field(metadata=UNIT_INTERVAL)
    lam: float = field(metadata=UNIT_INTERVAL)
    bootstrap_truncated: bool  # False treats a time limit as a termination, as CleanRL does
    normalize: str = field(metadata=NORMALIZE)

    needs_groups: ClassVar[bool] = False
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "advantage")

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Advantage and value target, both (T, E) float64."""
        terminated = rollout.terminated if self.bootstrap_truncated else rollout.done
        advantage = generalized_advantage(
            rollout.reward, rollout.value, rollout.next_value, terminated, rollout.done, gamma=self.gamma, lam=self.lam
        )
        return advantage, advantage + rollout.value


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """AWR's weight min(exp(A/beta), max_weight) of the standardized advantage A (Peng et al. 2019, Eq. 9 and App. C).

    On-policy, whereas the original also replays old data. The weight is always positive, so the update must not center it.
    Raises: ConfigError unless gae.normalize is none.
    """

    gae: GAE
    beta: float = field(metadata=POSITIVE)
    max_weight: float = field(metadata=POSITIVE)

    normalize: ClassVar[str] = "none"
    needs_groups: ClassVar[bool] = False
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, "advantage")
        given = self.gae.normalize
        require(given == "none", "advantage.gae.normalize", given, "would be ignored (weights stay positive); set it to none.")

    @property
    def gamma(self) -> float:
        """Discount; the reward normalizer reads it."""
        return self.gae.gamma

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Capped weight and value target, both (T, E) float64."""
        advantage, target = self.gae(rollout)
        live = advantage[rollout.live()]
        standardized = (advantage - live.mean()) / (live.std() + 1e-8)
        return np.minimum(np.exp(np.minimum(standardized / self.beta, 80.0)), self.max_weight), target


def grouped(reward_B: Array, group_size: int) -> Array:
    """Rewards (B,) reshaped to (prompts, G) float64.

    Raises: ConfigError if a group has a single completion, or if group_size does not divide the number of completions.
    """
    require(group_size > 1, "group_size", group_size, "a group needs at least 2 completions to compare.")
    even = len(reward_B) % group_size == 0
    require(even, "group_size", group_size, f"must divide the number of completions, {len(reward_B)}.")
    return np.asarray(reward_B, np.float64).reshape(-1, group_size)


def zero_variance_groups(reward_B: Array, group_size: int) -> Array:
    """Mask (prompts,) bool of groups whose rewards are all equal, and whose gradient is therefore zero."""
    reward = grouped(reward_B, group_size)
    equal: Array = reward.max(1) == reward.min(1)
    return equal


@dataclass(frozen=True, kw_only=True)
class GroupComparison:
    """Base class of estimators that compare the completions of a prompt and need no critic."""

    normalize: str = field(metadata=NORMALIZE)

    gamma: ClassVar[float] = 1.0  # the only reward is at the end
    needs_groups: ClassVar[bool] = True
    needs_critic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self, "advantage")

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Each completion's advantage at all of its tokens, and value targets of 0, both (T, E) float64."""
        advantage_TE = self.compare(rollout.reward.sum(0), rollout.group_size) * rollout.live()
        return advantage_TE, np.zeros_like(advantage_TE)

    def compare(self, reward_B: Array, group_size: int) -> Array:
        """Advantage (B,) float64; exactly 0, without rounding error, in a group of equal rewards.

        Raises: ConfigError if groups cannot be compared (see ``grouped``).
        """
        advantage = self._relative(grouped(reward_B, group_size))
        advantage[zero_variance_groups(reward_B, group_size)] = 0.0
        return advantage.ravel()

    def _relative(self, reward: Array) -> Array:
        """Advantages (prompts, G) of rewards (prompts, G)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupRelative(GroupComparison):
    """A_i = (R_i - mean R) / (std R + eps) within the group: GRPO (Shao et al. 2024, arXiv 2402.03300, Sec. 4.1.2).

    scale selects the std: group, the group's own; batch, that of all rewards (arXiv 2508.08221); none, no division at all,
    as in Dr. GRPO (arXiv 2503.20783). The std is unbiased, as in TRL.
    """

    scale: str = field(metadata=one_of("group", "batch", "none"))
    eps: float = field(metadata=POSITIVE)

    def _relative(self, reward: Array) -> Array:
        centered: Array = reward - reward.mean(1, keepdims=True)
        if self.scale == "group":
            centered /= reward.std(1, ddof=1, keepdims=True) + self.eps
        elif self.scale == "batch":
            centered /= reward.std(ddof=1) + self.eps
        return centered


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(GroupComparison):
    """A_i = R_i - mean of the others' R = G/(G-1) (R_i - mean R): RLOO (Kool et al. 2019; Ahmadian et al. 2024).

    The baseline does not depend on completion i, so the gradient is unbiased.
    """

    def _relative(self, reward: Array) -> Array:
        advantage: Array = reward - (reward.sum(1, keepdims=True) - reward) / (reward.shape[1] - 1)
        return advantage


def last_token(mask_BT: Array) -> Array:
    """Mask of each completion's last token, (B, T) bool with at most one True per row.

    Raises: ValueError if a row of mask is not ones followed by zeros.
    """
    live_BT = np.asarray(mask_BT, bool)
    after_BT = np.pad(live_BT[:, 1:], ((0, 0), (0, 1)))
    if (after_BT & ~live_BT).any():
        raise ValueError("mask_BT: has a token after a gap; completions must be right-padded.")
    last_BT: Array = live_BT & ~after_BT
    return last_BT


def token_rewards(score_B: Array, kl_BT: Array, mask_BT: Array, *, kl_coef: float) -> Array:
    """r_t = -kl_coef kl_t + 1[t is the last token] score, (B, T) float64, 0 under mask 0 (Ziegler et al. 2019).

    kl_BT: log pi_old/pi_ref of the tokens (k1), nats. Raises: ValueError if mask has gaps.
    """
    penalty_BT = np.where(np.asarray(mask_BT, bool), -kl_coef * np.asarray(kl_BT, np.float64), 0.0)
    return penalty_BT + np.where(last_token(mask_BT), np.asarray(score_B, np.float64)[:, None], 0.0)


def token_steps(reward_BT: Array, value_BT: Array, mask_BT: Array, truncated_B: Array) -> dict[str, Array]:
    """Completions as a rollout of T steps in B environments: a Rollout's reward, value, next_value, terminated, done, mask.

    reward_BT: the score at the last token, plus any penalty per token. value_BT: V of the state before each token. The last
    token is done, and it is terminated unless the length limit cut the completion (truncated_B). The value of the state
    after a cut is unknown, so value_BT at the last token is used instead (our choice). Raises: ValueError if mask has gaps.
    """
    live_BT, last_BT = np.asarray(mask_BT, bool), last_token(mask_BT)
    reward_BT, value_BT = (np.where(live_BT, np.asarray(x, np.float64), 0.0) for x in (reward_BT, value_BT))
    ended_BT = last_BT & ~np.asarray(truncated_B, bool)[:, None]
    next_value_BT = np.where(last_BT, np.where(ended_BT, 0.0, value_BT), np.pad(value_BT[:, 1:], ((0, 0), (0, 1))))
    steps = {"reward": reward_BT, "value": value_BT, "next_value": next_value_BT}
    steps |= {"terminated": ended_BT, "done": last_BT | ~live_BT, "mask": live_BT}
    return {name: np.ascontiguousarray(x.T) for name, x in steps.items()}
