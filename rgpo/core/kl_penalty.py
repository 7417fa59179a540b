"""KL penalties: a coefficient and the schedule it follows. Adaptive state lives here, not in the objective.

Against what: the reference policy where the task has one (language), else the policy that collected the batch (control).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from rgpo.errors import require


@dataclass(frozen=True, kw_only=True)
class NoPenalty:
    """No KL term in the loss. In language tasks reward_kl_coef log(pi/pi_ref) is taken from the reward instead.

    RLHF maximises score - beta KL(pi || ref) (Ziegler et al. 2019): an algorithm with a penalty has it in its loss, one
    without has it in its reward, as PPO-RLHF and RLOO publish it.
    """

    reward_kl_coef: float = 0.0

    coef: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        require(0 <= self.reward_kl_coef < math.inf, "penalty.reward_kl_coef", self.reward_kl_coef, "must not be negative.")

    def observe(self, kl: float) -> None:
        """Nothing to adapt."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class FixedPenalty:
    """loss + coef KL with a constant coefficient."""

    coef: float = 0.1

    reward_kl_coef: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        require(self.coef > 0, "penalty.coef", self.coef, "must be positive, choose penalty=none for no penalty.")

    def observe(self, kl: float) -> None:
        """Nothing to adapt."""

    def state_dict(self) -> dict[str, float]:
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        return None


@dataclass(kw_only=True)
class AdaptivePenalty:
    """coef *= factor if KL > tolerance kl_target, coef /= factor if KL < kl_target/tolerance (Schulman et al. 2017, Eq. 8).

    The paper only says "an adaptively scheduled KL penalty"; the rule and its constants are our choice.
    """

    coef: float = 1.0
    kl_target: float = 0.02  # nats, a sample: the level the paper reports for control
    factor: float = 2.0
    tolerance: float = 1.5
    min_coef: float = 1e-3
    max_coef: float = 1e3

    reward_kl_coef: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        require(self.kl_target > 0, "penalty.kl_target", self.kl_target, "must be positive (nats).")
        require(self.factor > 1, "penalty.factor", self.factor, "must be greater than 1.")
        require(self.tolerance >= 1, "penalty.tolerance", self.tolerance, "must be at least 1.")
        require(0 < self.min_coef <= self.max_coef, "penalty.min_coef", self.min_coef, "must be positive and <= max_coef.")
        require(
            self.min_coef <= self.coef <= self.max_coef,
            "penalty.coef",
            self.coef,
            f"must lie in [min_coef, max_coef] = [{self.min_coef}, {self.max_coef}].",
        )

    def observe(self, kl: float) -> None:
        """Adapt to the KL that was penalised, as it stands after the update (nats)."""
        if kl > self.kl_target * self.tolerance:
            self.coef = min(self.coef * self.factor, self.max_coef)
        elif kl < self.kl_target / self.tolerance:
            self.coef = max(self.coef / self.factor, self.min_coef)

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
