"""KL penalties: a coefficient, its place (in the loss or in the reward), and its schedule with any adaptive state.

The divergence in the loss is taken from an anchor: the reference policy (the default on language), or the policy that
collected the batch (control). RLHF maximizes score - beta KL(pi || ref) (Ziegler et al. 2019): GRPO puts the KL in its loss,
PPO-RLHF and RLOO put it in the reward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from rgpo.core.divergences import k2, k3, reweighted_kl
from rgpo.core.ranges import ABOVE_ONE, POSITIVE, accept, check_fields, one_of
from rgpo.errors import require

if TYPE_CHECKING:
    from torch import Tensor

ESTIMATOR, ANCHOR = one_of("exact", "k2", "k3", "unbiased"), one_of("old", "reference")
_COEF = accept(lambda x: 0 < x < math.inf, "must be positive and finite; choose penalty=none for no penalty.")


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The KL that a loss penalizes at each sample of the old policy; q is the anchor, s = grad log pi, d = log pi/q, r = pi/old.

    estimator   per sample                  expectation of its gradient
    exact       sum over old (log old/pi)   grad KL(old || pi); closed form, anchor old
    k2          d^2/2, slope d              grad KL(pi || q) on-policy; off-policy without the factor r
    k3          e^-d - 1 + d, slope 1-e^-d  grad KL(q || pi) on-policy, as GRPO publishes it
    k3, old     e^d - 1 - d, slope e^d - 1  grad KL(old || pi), also off-policy: the samples are old's
    unbiased    r (e^-d - 1 + d), slope r d grad KL(pi || q), also off-policy

    States are those of the batch, whose distribution is held fixed as in the surrogate.
    Raises: ConfigError for the exact KL from a reference.
    """

    estimator: str = field(metadata=ESTIMATOR)
    anchor: str = field(metadata=ANCHOR)

    def __post_init__(self) -> None:
        check_fields(self, "penalty")
        fits = self.estimator != "exact" or self.anchor == "old"
        require(fits, "penalty.anchor", self.anchor, "the exact KL is from the old policy; use penalty.estimator=unbiased.")

    def __call__(self, d_old: Tensor, d_ref: Tensor, kl_old: Tensor | None) -> Tensor:
        """Nats, (n,): d_old = log pi/old, d_ref = log pi/ref; kl_old is the exact KL(old || pi), used by estimator=exact only."""
        if self.estimator == "exact":
            assert kl_old is not None
            return kl_old
        if self.estimator == "unbiased":
            return reweighted_kl(d_old, d_old if self.anchor == "old" else d_ref)
        x = d_old if self.anchor == "old" else -d_ref  # log q/p on samples of p: p = old, q = pi; or p = pi, q = ref
        return (k2 if self.estimator == "k2" else k3)(x)


class Penalty(Protocol):
    """The coefficients of the KL divergence and their schedule."""

    @property
    def loss_coef(self) -> float:
        """Coefficient in the loss; 0 if there is none."""
        ...

    @property
    def divergence(self) -> Divergence | None:
        """The KL that loss_coef multiplies; None if nothing is penalized in the loss."""
        ...

    @property
    def reward_coef(self) -> float:
        """Coefficient in the reward, which needs a reference policy; 0 if there is none."""
        ...

    def observe(self, kl: float) -> None:
        """Adapt to the KL from the anchor after an update (nats)."""
        ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ConstantPenalty:
    """Base class of penalties with a constant coefficient, which is 0 in loss and reward unless a subclass overrides it."""

    @property
    def loss_coef(self) -> float:
        return 0.0

    @property
    def divergence(self) -> Divergence | None:
        return None

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
    estimator: str = field(metadata=ESTIMATOR)
    anchor: str = field(metadata=ANCHOR)

    def __post_init__(self) -> None:
        check_fields(self, "penalty")
        Divergence(estimator=self.estimator, anchor=self.anchor)  # checks that estimator and anchor fit

    @property
    def loss_coef(self) -> float:
        return self.coef

    @property
    def divergence(self) -> Divergence | None:
        return Divergence(estimator=self.estimator, anchor=self.anchor)


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
    estimator: str = field(metadata=ESTIMATOR)
    anchor: str = field(metadata=ANCHOR)
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
        Divergence(estimator=self.estimator, anchor=self.anchor)  # checks that estimator and anchor fit

    @property
    def loss_coef(self) -> float:
        return self.coef

    @property
    def divergence(self) -> Divergence | None:
        return Divergence(estimator=self.estimator, anchor=self.anchor)

    def observe(self, kl: float) -> None:
        """Adapt to the KL from the anchor after the update (nats)."""
        if kl > self.kl_target * self.tolerance:
            self.coef = min(self.coef * self.factor, self.max_coef)
        elif kl < self.kl_target / self.tolerance:
            self.coef = max(self.coef / self.factor, self.min_coef)

    def state_dict(self) -> dict[str, float]:
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.coef = state["coef"]
