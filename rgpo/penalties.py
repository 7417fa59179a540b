"""KL penalties: a coefficient in the loss and the schedule it follows. Adaptive state lives here, not in the objective."""

from __future__ import annotations

from dataclasses import dataclass, field

from rgpo.errors import require


@dataclass(frozen=True, kw_only=True)
class NoPenalty:
    """Coefficient 0; the loss has no KL term."""

    coef: float = field(default=0.0, init=False)

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
    kl_target: float = 0.02  # nats per update: the level the paper reports
    factor: float = 2.0
    tolerance: float = 1.5
    min_coef: float = 1e-3
    max_coef: float = 1e3

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
        """Adapt to the KL of the last update (nats)."""
        if kl > self.kl_target * self.tolerance:
            self.coef = min(self.coef * self.factor, self.max_coef)
        elif kl < self.kl_target / self.tolerance:
            self.coef = max(self.coef / self.factor, self.min_coef)

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
