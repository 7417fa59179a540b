"""Credit: rewards and values of a rollout to advantages and value targets. Pure numpy over (T, E) arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rgpo.core.recurrence import recurrence
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import require


def generalized_advantage(
    reward: Array, value: Array, next_value: Array, terminated: Array, done: Array, *, gamma: float, lam: float
) -> Array:
    """A_t = delta_t + gamma lam (1 - done_t) A_{t+1}, delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t).

    All arrays (T, E); next_value is V of the true next observation. Schulman et al. 2016, Eq. 16.
    """
    delta = reward + gamma * next_value * ~terminated - value
    carry = gamma * lam * ~done
    return recurrence(carry[::-1], delta[::-1], np.zeros(delta.shape[1]))[::-1]


def check_normalize(choice: str) -> None:
    """ConfigError unless choice is minibatch, batch or none."""
    require(choice in ("minibatch", "batch", "none"), "advantage.normalize", choice, "choose minibatch, batch or none.")


@dataclass(frozen=True, kw_only=True)
class GAE:
    """Generalised advantage estimation; lam = 1 is the discounted return minus the value baseline (REINFORCE)."""

    gamma: float = 0.99
    lam: float = 0.95
    bootstrap_truncated: bool = True  # False treats a time limit as a termination, as CleanRL does
    normalize: str = "minibatch"  # what the update standardises advantages over: minibatch, batch or none

    needs_groups: ClassVar[bool] = False
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_normalize(self.normalize)
        require(0 <= self.gamma <= 1, "advantage.gamma", self.gamma, "must lie in [0, 1].")
        require(0 <= self.lam <= 1, "advantage.lam", self.lam, "must lie in [0, 1].")

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """Advantage and value target, both (T, E) float64."""
        terminated = rollout.terminated if self.bootstrap_truncated else rollout.done
        advantage = generalized_advantage(
            rollout.reward, rollout.value, rollout.next_value, terminated, rollout.done, gamma=self.gamma, lam=self.lam
        )
        return advantage, advantage + rollout.value


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """AWR's weight min(exp(A/beta), max_weight) of the standardised advantage (Peng et al. 2019, Eq. 9 and App. C).

    On-policy: the original also replays old data. Always positive, so the update must not centre it.
    """

    gae: GAE
    beta: float = 1.0
    max_weight: float = 20.0

    normalize: ClassVar[str] = "none"
    needs_groups: ClassVar[bool] = False
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.beta > 0, "advantage.beta", self.beta, "must be positive.")
        require(self.max_weight > 0, "advantage.max_weight", self.max_weight, "must be positive.")

    @property
    def gamma(self) -> float:
        """Discount, as the reward normaliser needs it."""
        return self.gae.gamma

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]:
        """exp(A/beta), capped, and the value target, both (T, E) float64."""
        advantage, target = self.gae(rollout)
        live = advantage[rollout.live()]
        standardised = (advantage - live.mean()) / (live.std() + 1e-8)
        return np.minimum(np.exp(np.minimum(standardised / self.beta, 80.0)), self.max_weight), target
