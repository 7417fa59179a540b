"""KL penalties: the published schedule, its bounds and its state."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rgpo.core.kl_penalty import AdaptivePenalty, FixedPenalty, NoPenalty, Penalty, RewardKL
from rgpo.errors import ConfigError

EXACT = {"estimator": "exact", "anchor": "old"}
BOUNDS = {"kl_target": 0.02, "factor": 2.0, "tolerance": 1.5, "min_coef": 1e-3, "max_coef": 1e3}
VALID: dict[Any, dict[str, Any]] = {
    AdaptivePenalty: {"coef": 1.0, **BOUNDS, **EXACT},
    FixedPenalty: {"coef": 1.0, **EXACT},
    RewardKL: {"coef": 1.0},
}


def adaptive(**changes: float) -> AdaptivePenalty:
    return AdaptivePenalty(**{**VALID[AdaptivePenalty], **changes})


@pytest.mark.parametrize(
    ("penalty", "loss_coef", "reward_coef"),
    [(NoPenalty(), 0.0, 0.0), (FixedPenalty(coef=0.3, **EXACT), 0.3, 0.0), (RewardKL(coef=0.05), 0.0, 0.05)],
    ids=["none", "fixed", "reward_kl"],
)
def test_constant_penalties_act_in_one_place_and_stay_constant(penalty: Penalty, loss_coef: float, reward_coef: float) -> None:
    for kl in (0.0, 1.0, 100.0):
        penalty.observe(kl)
    penalty.load_state_dict(penalty.state_dict())
    assert (penalty.loss_coef, penalty.reward_coef) == (loss_coef, reward_coef)
    assert penalty.state_dict() == {}


def test_the_adaptive_penalty_acts_in_the_loss_with_its_present_coefficient() -> None:
    penalty: Penalty = adaptive(coef=1.0)
    assert (penalty.loss_coef, penalty.reward_coef) == (1.0, 0.0)
    penalty.observe(1.0)
    assert (penalty.loss_coef, penalty.reward_coef) == (2.0, 0.0)


@pytest.mark.parametrize(
    ("kl", "factor"), [(0.031, 2.0), (0.0299, 1.0), (0.02, 1.0), (0.0134, 1.0), (0.0133, 0.5), (0.0, 0.5), (50.0, 2.0)]
)
def test_adaptive_rule_of_the_ppo_paper(kl: float, factor: float) -> None:
    """beta doubles if d > 1.5 d_target, halves if d < d_target/1.5 (Schulman et al. 2017, Eq. 8)."""
    penalty = adaptive(coef=1.0, kl_target=0.02, factor=2.0, tolerance=1.5)
    penalty.observe(kl)
    assert penalty.coef == factor


def test_adaptive_penalty_stays_in_its_bounds_and_comes_back() -> None:
    penalty = adaptive(coef=1.0, min_coef=0.1, max_coef=5.0)
    for kl, bound in ((1.0, 5.0), (0.0, 0.1)):
        for _ in range(20):
            penalty.observe(kl)
        assert penalty.coef == bound
    penalty.observe(1.0)
    assert penalty.coef == pytest.approx(0.2)


def test_adaptive_penalty_drives_a_simple_loop_to_its_target() -> None:
    """KL = 1/(1 + 100 coef): the coefficient settles within the tolerance around the target."""
    penalty, kl = adaptive(coef=1e-3, kl_target=0.02), 1.0
    for _ in range(30):
        kl = 1 / (1 + 100 * penalty.coef)
        penalty.observe(kl)
    assert 0.02 / 1.5 <= kl <= 0.02 * 1.5


def test_adaptive_penalty_round_trips() -> None:
    penalty, other = adaptive(), adaptive()
    penalty.observe(1.0)
    other.load_state_dict(penalty.state_dict())
    assert other == penalty
    assert other.state_dict() == {"coef": 2.0}


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        *[(cls, "coef", value) for cls in (FixedPenalty, RewardKL) for value in (0.0, -0.1, math.nan, math.inf, "much")],
        *[(AdaptivePenalty, key, value) for key in ("coef", *BOUNDS) for value in (math.nan, math.inf)],
        (AdaptivePenalty, "kl_target", 0.0),
        (AdaptivePenalty, "factor", 1.0),
        (AdaptivePenalty, "tolerance", 0.9),
        (AdaptivePenalty, "min_coef", 0.0),
        (AdaptivePenalty, "min_coef", 2e3),
        (AdaptivePenalty, "coef", 0.0),
        (AdaptivePenalty, "coef", 1e4),
        *[(cls, key, "k9") for cls in (FixedPenalty, AdaptivePenalty) for key in EXACT],
        *[(cls, "anchor", "reference") for cls in (FixedPenalty, AdaptivePenalty)],  # beside estimator=exact
    ],
)
def test_bad_values_are_refused(cls: Any, key: str, value: Any) -> None:
    cls(**VALID[cls])
    with pytest.raises(ConfigError, match=rf"^penalty\.{key}={value}: .{{10,}}\.$"):
        cls(**{**VALID[cls], key: value})


def test_no_penalty_has_no_knob_and_the_others_name_it_as_the_remedy() -> None:
    with pytest.raises(TypeError):
        NoPenalty(coef=0.1)
    for cls in (FixedPenalty, RewardKL):
        with pytest.raises(ConfigError, match=r"choose penalty=none"):
            cls(**VALID[cls] | {"coef": 0.0})
