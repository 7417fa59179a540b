"""KL penalties: a coefficient, whether it acts in the loss or in the reward, and its schedule. Adaptive state is kept here.

The divergence is from the reference policy where the task has one (language), else from the policy that collected the batch
(control). RLHF maximizes score - beta KL(pi || ref) (Ziegler et al. 2019): GRPO has the KL in its loss, PPO-RLHF and RLOO have
it in the reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from rgpo.core.ranges import ABOVE_ONE, POSITIVE, accept, check_fields
from rgpo.errors import require

_COEF = accept(lambda x: 0 < x < math.inf, "must be positive and finite; choose penalty=none for no penalty.")


class Penalty(Protocol):
    """The coefficients of the KL divergence and their schedule."""

    @property
    def loss_coef(self) -> float:
        """In the loss, 0 if none."""
        ...

    @property
    def reward_coef(self) -> float:
        """In the reward, 0 if none; needs a reference policy."""
        ...

    def observe(self, kl: float) -> None:
        """Adapt to the penalized KL after an update (nats)."""
        ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ConstantPenalty:
    """Base of penalties whose coefficient is constant; 0 in both places unless a subclass has one."""

    @property
    def loss_coef(self) -> float:
        return 0.0

    @property
    def reward_coef(self) -> float:
        return 0.0

    def observe(self, kl: float) -> None:
        """No-op: the coefficient is constant."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class NoPenalty(ConstantPenalty):
    """No KL term, neither in the loss nor in the reward."""


@dataclass(frozen=True, kw_only=True)
class FixedPenalty(ConstantPenalty):
    """loss + coef KL with a constant coefficient."""

    coef: float = field(metadata=_COEF)

    def __post_init__(self) -> None:
        check_fields(self, "penalty")

    @property
    def loss_coef(self) -> float:
        return self.coef


@dataclass(frozen=True, kw_only=True)
class RewardKL(ConstantPenalty):
    """reward_t - coef log(pi/pi_ref) at each token, with no KL in the loss (Ziegler et al. 2019)."""

    coef: float = field(metadata=_COEF)

    def __post_init__(self) -> None:
        check_fields(self, "penalty")

    @property
    def reward_coef(self) -> float:
        return self.coef


@dataclass(kw_only=True)
class AdaptivePenalty:
    """coef *= factor if KL > tolerance kl_target, coef /= factor if KL < kl_target/tolerance (Schulman et al. 2017, Eq. 8).

    The paper only says "an adaptively scheduled KL penalty"; the rule and its constants are our choice.
    """

    coef: float
    kl_target: float = field(metadata=POSITIVE)  # nats per sample; the paper reports 0.02 for control
    factor: float = field(metadata=ABOVE_ONE)
    tolerance: float = field(metadata=accept(lambda x: 1 <= x < math.inf, "must be a finite number, at least 1."))
    min_coef: float = field(metadata=POSITIVE)
    max_coef: float = field(metadata=POSITIVE)

    reward_coef: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "penalty")
        low, high = self.min_coef, self.max_coef
        require(low <= high, "penalty.min_coef", low, f"must be positive and at most max_coef={high}.")
        require(low <= self.coef <= high, "penalty.coef", self.coef, f"must lie in [min_coef, max_coef] = [{low}, {high}].")

    @property
    def loss_coef(self) -> float:
        return self.coef

    def observe(self, kl: float) -> None:
        """Adapt to the penalized KL after the update (nats)."""
        if kl > self.kl_target * self.tolerance:
            self.coef = min(self.coef * self.factor, self.max_coef)
        elif kl < self.kl_target / self.tolerance:
            self.coef = max(self.coef / self.factor, self.min_coef)

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
