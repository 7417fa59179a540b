"""Advantages of completions against closed forms, invariances and the literal double sum."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from rgpo.core.advantages import (
    GAE,
    GroupRelative,
    LeaveOneOut,
    last_token,
    token_rewards,
    token_steps,
    zero_variance_groups,
)
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import ConfigError


def group_relative(scale: str = "group", eps: float = 1e-4, normalize: str = "none") -> GroupRelative:
    return GroupRelative(scale=scale, eps=eps, normalize=normalize)


LEAVE_ONE_OUT = LeaveOneOut(normalize="none")
ESTIMATORS = [group_relative(scale=scale) for scale in ("group", "batch", "none")] + [LEAVE_ONE_OUT]
REWARD = np.array([1.0, 0.0, 0.0, -3.0, 2.0, 2.0, 2.0, 2.0])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]])


def token_gae(reward: Array, value: Array, mask: Array, truncated: Array, **settings: Any) -> tuple[Array, Array]:
    """Advantage and value target (B, T) of rgpo.core.advantages.GAE over tokens."""
    rollout = Rollout(metrics={}, **token_steps(reward, value, mask, truncated))
    defaults = {"gamma": 0.99, "lam": 0.95, "bootstrap_truncated": True, "normalize": "none"}
    advantage, target = GAE(**{**defaults, **settings})(rollout)
    return advantage.T, target.T


def rewards(prompts: int = 6, group_size: int = 5, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(prompts * group_size)


def test_group_relative_by_hand() -> None:
    centered = np.array([1.5, 0.5, 0.5, -2.5, 0, 0, 0, 0])
    std_group = math.sqrt((1.5**2 + 0.5**2 + 0.5**2 + 2.5**2) / 3)
    std_batch = math.sqrt(((REWARD - 0.75) ** 2).sum() / 7)
    np.testing.assert_allclose(group_relative().compare(REWARD, 4), centered / (std_group + 1e-4))
    np.testing.assert_allclose(group_relative(scale="batch", eps=1e-2).compare(REWARD, 4), centered / (std_batch + 1e-2))
    np.testing.assert_array_equal(group_relative(scale="none").compare(REWARD, 4), centered)


def test_two_completions_get_plus_and_minus_one_over_root_two() -> None:
    found = group_relative(eps=1e-12).compare(np.array([5.0, -1.0, 0.1, 0.3]), 2)
    np.testing.assert_allclose(found, np.array([1, -1, -1, 1]) / math.sqrt(2))


def test_leave_one_out_by_hand() -> None:
    np.testing.assert_allclose(LEAVE_ONE_OUT.compare(REWARD, 4), [2, 2 / 3, 2 / 3, -10 / 3, 0, 0, 0, 0], atol=1e-15)


@pytest.mark.parametrize("group_size", [2, 3, 5, 30])
def test_leave_one_out_is_the_mean_of_the_others_and_a_scaled_centering(group_size: int) -> None:
    reward = rewards()
    found = LEAVE_ONE_OUT.compare(reward, group_size).reshape(-1, group_size)
    groups = reward.reshape(-1, group_size)
    for row, group in zip(found, groups, strict=True):
        others = [np.delete(group, i).mean() for i in range(group_size)]
        np.testing.assert_allclose(row, group - others, atol=1e-12)
    scaled = group_size / (group_size - 1) * group_relative(scale="none").compare(reward, group_size)
    np.testing.assert_allclose(found.ravel(), scaled, atol=1e-12)


def test_leave_one_out_has_the_exact_gradient_on_average_and_the_group_mean_shrinks_it() -> None:
    """Every pair of draws from three completions, weighed by its probability: E[mean_i A_i s_i] is the gradient of E[R]."""
    p, reward = np.array([0.5, 0.3, 0.2]), np.array([1.0, -2.0, 4.0])
    score = np.eye(3) - p  # of a softmax: row a is grad log p(a)
    true = (p * reward) @ score
    exact = dict.fromkeys(("loo", "none"), np.zeros(3))
    for pair in itertools.product(range(3), repeat=2):
        drawn = list(pair)
        for key, estimator in (("loo", LEAVE_ONE_OUT), ("none", group_relative(scale="none"))):
            exact[key] = exact[key] + p[drawn].prod() * (estimator.compare(reward[drawn], 2) @ score[drawn]) / 2
    np.testing.assert_allclose(exact["loo"], true, atol=1e-12)
    np.testing.assert_allclose(exact["none"], true / 2, atol=1e-12)  # (G-1)/G


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_what_a_baseline_must_not_notice(estimator: Any) -> None:
    reward, group_size = rewards(), 5
    found = estimator.compare(reward, group_size)
    assert found.dtype == np.float64
    assert found.shape == reward.shape
    np.testing.assert_allclose(estimator.compare(reward + 100.0, group_size), found, atol=1e-9)  # a constant
    np.testing.assert_allclose(found.reshape(-1, group_size).sum(1), 0, atol=1e-12)
    order = np.random.default_rng(1).permutation(6)
    shuffled = estimator.compare(reward.reshape(6, 5)[order].ravel(), group_size)
    np.testing.assert_allclose(shuffled, found.reshape(6, 5)[order].ravel(), atol=1e-12)


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if getattr(e, "scale", "") != "batch"], ids=str)
def test_groups_do_not_see_each_other(estimator: Any) -> None:
    reward = rewards()
    changed = reward + np.repeat(np.arange(6.0) * 10, 5)  # a constant of each prompt
    changed[:5] *= 3
    np.testing.assert_allclose(estimator.compare(changed, 5)[5:], estimator.compare(reward, 5)[5:], atol=1e-9)


def test_the_scale_of_rewards() -> None:
    reward = rewards()
    for scale in ("group", "batch"):
        tight = group_relative(scale=scale, eps=1e-12)
        np.testing.assert_allclose(tight.compare(7 * reward, 5), tight.compare(reward, 5), atol=1e-9)
    np.testing.assert_allclose(
        group_relative(scale="none").compare(7 * reward, 5), 7 * group_relative(scale="none").compare(reward, 5)
    )


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, 0.0])
def test_a_zero_variance_group_is_exactly_zero_and_counted(estimator: Any, value: float) -> None:
    reward = np.concatenate([[value] * 7, rewards(2, 7), [value] * 7])
    found = estimator.compare(reward, 7)
    assert (found[:7] == 0).all()
    assert (found[-7:] == 0).all()
    assert (found[7:-7] != 0).all()
    assert zero_variance_groups(reward, 7).tolist() == [True, False, False, True]
    assert np.isfinite(estimator.compare(np.full(7, value), 7)).all()


def double_sum(reward: Array, value: Array, end_value: float, gamma: float, lam: float) -> Array:
    """A_t = sum_l (gamma lam)^l delta_{t+l} of one completion without padding."""
    following = [*value[1:], end_value][: len(value)]  # nothing follows in an empty one
    delta = [r + gamma * after - v for r, v, after in zip(reward, value, following, strict=True)]
    return np.array([sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))])


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.9, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_token_gae_is_the_double_sum(gamma: float, lam: float, bootstrap: bool) -> None:
    reward, value = np.random.default_rng(2).standard_normal((2, *MASK.shape))
    truncated = np.array([True, False, True, False, True])
    advantage, target = token_gae(reward, value, MASK, truncated, gamma=gamma, lam=lam, bootstrap_truncated=bootstrap)
    for i, length in enumerate(MASK.sum(1)):
        end = value[i, length - 1] if truncated[i] and bootstrap else 0.0
        expected = double_sum(reward[i, :length], value[i, :length], end, gamma, lam)
        np.testing.assert_allclose(advantage[i, :length], expected, atol=1e-12)
        np.testing.assert_allclose(target[i, :length], expected + value[i, :length], atol=1e-12)
    assert (advantage[MASK == 0] == 0).all()
    assert (target[MASK == 0] == 0).all()
    assert advantage.dtype == target.dtype == np.float64


def test_padding_is_never_read() -> None:
    reward, value = np.random.default_rng(3).standard_normal((2, *MASK.shape))
    clean = token_gae(reward, value, MASK, np.ones(5, bool))
    reward[MASK == 0], value[MASK == 0] = np.nan, np.inf
    for found, expected in zip(token_gae(reward, value, MASK.astype(bool), np.ones(5, bool)), clean, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_without_a_critic_the_undiscounted_advantage_is_the_score_less_the_penalty_to_come() -> None:
    kl = np.random.default_rng(4).standard_normal(MASK.shape)
    score = np.array([1.0, -2.0, 0.5, 3.0, 7.0])
    reward = token_rewards(score, kl, MASK, kl_coef=0.1)
    advantage, target = token_gae(reward, 0 * kl, MASK, np.zeros(5, bool), gamma=1.0, lam=1.0)
    for i, length in enumerate(MASK.sum(1)):
        to_come = [score[i] - 0.1 * kl[i, t:length].sum() for t in range(length)]
        np.testing.assert_allclose(advantage[i, :length], to_come, atol=1e-12)
    np.testing.assert_array_equal(advantage, target)


def test_a_perfect_critic_leaves_no_advantage() -> None:
    """The score is known in advance: V is its discounted value, and only a wrong end of the completion is noticed."""
    gamma, score = 0.9, np.array([1.0, -2.0, 0.5, 3.0, 0.0])
    left = MASK.sum(1, keepdims=True) - 1 - np.arange(MASK.shape[1])
    value = score[:, None] * gamma ** np.maximum(left, 0)
    reward = token_rewards(score, 0 * value, MASK, kl_coef=0.5)
    settings = {"gamma": gamma, "lam": 0.7, "bootstrap_truncated": True}
    np.testing.assert_allclose(token_gae(reward, value, MASK, np.zeros(5, bool), **settings)[0], 0, atol=1e-12)
    wrong, _ = token_gae(reward, value, MASK, np.ones(5, bool), **settings)
    np.testing.assert_allclose(wrong[last_token(MASK)], gamma * score[:4], atol=1e-12)  # the score counted twice


def test_token_rewards_and_last_token() -> None:
    reward = token_rewards(np.array([1.0, 2.0]), np.array([[0.5, -1.0, np.nan], [1.0, 2.0, 3.0]]), MASK[[1, 0], :3], kl_coef=0.1)
    np.testing.assert_allclose(reward, [[-0.05, 1.1, 0.0], [-0.1, -0.2, 1.7]])
    assert last_token(MASK).argmax(1).tolist() == [4, 1, 0, 3, 0]
    assert last_token(MASK).sum(1).tolist() == [1, 1, 1, 1, 0]
    for gap in ([[1, 0, 1]], [[0, 1, 1]]):
        with pytest.raises(ValueError, match="must be right-padded"):
            last_token(np.array(gap))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: group_relative(scale="std"), r"^advantage\.scale=std: must be group, batch or none\.$"),
        (lambda: group_relative(eps=0.0), r"^advantage\.eps=0\.0: must be a positive, finite number\.$"),
        (lambda: group_relative(eps=math.inf), r"^advantage\.eps=inf: must be a positive, finite number\.$"),
        (lambda: group_relative(normalize="x"), r"^advantage\.normalize=x: must be minibatch, batch or none\.$"),
        (lambda: LeaveOneOut(normalize="x"), r"^advantage\.normalize=x: must be minibatch, batch or none\.$"),
        (lambda: group_relative().compare(np.ones(4), 1), r"group_size=1: a group needs at least 2 completions"),
        (lambda: LEAVE_ONE_OUT.compare(np.ones(4), 1), r"group_size=1: a group needs at least 2 completions"),
        (lambda: group_relative().compare(np.ones(5), 2), r"group_size=2: must divide the number of completions, 5"),
    ],
)
def test_bad_values_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()
