"""Advantages against the literal double sum, and an endless environment whose value is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rgpo.core.advantages import GAE, Advantage, Exponential, GroupRelative, LeaveOneOut, generalized_advantage
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import ConfigError

T, E = 12, 3


def rollout(reward: Array, value: Array, next_value: Array, terminated: Array, done: Array) -> Rollout:
    return Rollout(reward=reward, terminated=terminated, done=done, value=value, next_value=next_value, metrics={})


def make_gae(gamma: float = 0.99, lam: float = 0.95, bootstrap_truncated: bool = True, normalize: str = "none") -> GAE:
    return GAE(gamma=gamma, lam=lam, bootstrap_truncated=bootstrap_truncated, normalize=normalize)


def make_exponential(beta: float = 1.0, max_weight: float = 20.0, normalize: str = "none") -> Exponential:
    return Exponential(gae=make_gae(normalize=normalize), beta=beta, max_weight=max_weight)


def random_rollout(seed: int = 0) -> Rollout:
    """Episodes that terminate and that are truncated; next_value is the next row's value within an episode."""
    rng = np.random.default_rng(seed)
    reward, value, last = rng.standard_normal((3, T, E))
    terminated = rng.random((T, E)) < 0.15
    done = terminated | (rng.random((T, E)) < 0.15)
    assert terminated.any()
    assert (done & ~terminated).any()
    next_value = np.where(done, last, np.concatenate([value[1:], last[-1:]]))
    return rollout(reward, value, next_value, terminated, done)


def double_sum(r: Rollout, terminated: Array, gamma: float, lam: float) -> Array:
    """A_t = sum_l (gamma lam)^l delta_{t+l}, l running to the end of the episode or of the rollout."""
    advantage = np.zeros((T, E))
    for e in range(E):
        for t in range(T):
            for i in range(t, T):
                future = 0.0 if terminated[i, e] else gamma * r.next_value[i, e]
                advantage[t, e] += (gamma * lam) ** (i - t) * (r.reward[i, e] + future - r.value[i, e])
                if r.done[i, e]:
                    break
    return advantage


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 1.0), (0.9, 0.0), (1.0, 1.0), (0.0, 0.5)])
def test_gae_is_the_double_sum(gamma: float, lam: float, bootstrap: bool) -> None:
    r = random_rollout()
    advantage, target = make_gae(gamma=gamma, lam=lam, bootstrap_truncated=bootstrap)(r)
    expected = double_sum(r, r.terminated if bootstrap else r.done, gamma, lam)
    np.testing.assert_allclose(advantage, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(target, advantage + r.value)
    assert advantage.dtype == target.dtype == np.float64


def test_lam_one_is_the_discounted_return_less_the_baseline() -> None:
    r, gamma = random_rollout(1), 0.9
    _, target = make_gae(gamma=gamma, lam=1.0)(r)
    running = r.next_value[-1]
    for t in reversed(range(T)):
        end = np.where(r.terminated[t], 0.0, r.next_value[t])
        running = r.reward[t] + gamma * np.where(r.done[t], end, running)
        np.testing.assert_allclose(target[t], running, atol=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_an_endless_environment_is_worth_one_over_one_minus_gamma(gamma: float, lam: float) -> None:
    """Reward 1 for ever, cut by a time limit every fourth step: bootstrapping keeps the value, ending there loses it."""
    ones, worth = np.ones((T, E)), 1 / (1 - gamma)
    done = np.zeros((T, E), bool)
    done[3::4] = True
    endless = rollout(ones, ones * worth, ones * worth, done & False, done)
    advantage, target = make_gae(gamma=gamma, lam=lam)(endless)
    np.testing.assert_allclose(advantage, 0, atol=1e-9)
    np.testing.assert_allclose(target, worth)
    wrong, wrong_target = make_gae(gamma=gamma, lam=lam, bootstrap_truncated=False)(endless)
    np.testing.assert_allclose(wrong[3::4], 1 - worth)  # the step at the limit is blamed for the whole future
    np.testing.assert_allclose(wrong[2::4], gamma * lam * (1 - worth), atol=1e-12)
    if lam == 1:
        np.testing.assert_allclose(wrong_target[::4], (1 - gamma**4) / (1 - gamma))  # the value of four steps


def test_nothing_leaks_across_episodes_or_environments() -> None:
    r = random_rollout(2)
    reward = r.reward.copy()
    end = int(np.argmax(r.done[:, 0]))
    reward[end + 1 :, 0] += 100.0
    reward[:, 1] += 100.0
    changed = rollout(reward, r.value, r.next_value, r.terminated, r.done)
    before, after = make_gae()(r)[0], make_gae()(changed)[0]
    np.testing.assert_array_equal(before[: end + 1, 0], after[: end + 1, 0])
    np.testing.assert_array_equal(before[:, 2], after[:, 2])
    assert not np.allclose(before[:, 1], after[:, 1])


def test_generalized_advantage_of_one_step_is_the_td_error() -> None:
    one = np.ones((1, 1))
    for terminated, expected in ((False, 1 + 0.9 * 2 - 3), (True, 1 - 3)):
        end = np.full((1, 1), terminated)
        found = generalized_advantage(one, 3 * one, 2 * one, end, end, gamma=0.9, lam=0.95)
        assert found.item() == pytest.approx(expected)


def test_exponential_weights() -> None:
    r = random_rollout(3)
    gae = make_gae(gamma=0.9, lam=0.8)
    advantage, target = gae(r)
    found, found_target = Exponential(gae=gae, beta=0.5, max_weight=3.0)(r)
    z = (advantage - advantage.mean()) / advantage.std()
    np.testing.assert_allclose(found, np.minimum(np.exp(z / 0.5), 3.0), rtol=1e-6)
    np.testing.assert_array_equal(found_target, target)
    assert (found > 0).all()
    assert found.max() == 3.0
    assert Exponential(gae=gae, beta=1.0, max_weight=20.0).gamma == 0.9
    cold, _ = Exponential(gae=gae, beta=1e-6, max_weight=20.0)(r)  # exp would overflow
    assert np.isfinite(cold).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: make_gae(gamma=1.1), r"^advantage\.gamma=1\.1: must lie in \[0, 1\]\.$"),
        (lambda: make_gae(gamma=math.nan), r"^advantage\.gamma=nan: must lie in \[0, 1\]\.$"),
        (lambda: make_gae(lam=-0.1), r"^advantage\.lam=-0\.1: must lie in \[0, 1\]\.$"),
        (lambda: make_gae(normalize="all"), r"^advantage\.normalize=all: must be minibatch, batch or none\.$"),
        (lambda: make_exponential(beta=0.0), r"^advantage\.beta=0\.0: must be a positive, finite number\.$"),
        (lambda: make_exponential(max_weight=-1.0), r"^advantage\.max_weight=-1\.0: must be a positive, finite number\.$"),
        (lambda: make_exponential(max_weight=math.inf), r"^advantage\.max_weight=inf: must be a positive, finite number\.$"),
        (lambda: make_exponential(normalize="batch"), r"^advantage\.gae\.normalize=batch: .*set it to none\.$"),
    ],
    ids=["gamma", "nan", "lam", "normalize", "beta", "max_weight", "inf", "gae.normalize"],
)
def test_bad_values_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


@pytest.mark.parametrize(
    ("estimator", "gamma", "normalize", "groups", "critic"),
    [
        (make_gae(gamma=0.9, normalize="batch"), 0.9, "batch", False, True),
        (make_exponential(), 0.99, "none", False, True),
        (GroupRelative(scale="group", eps=1e-4, normalize="minibatch"), 1.0, "minibatch", True, False),
        (LeaveOneOut(normalize="none"), 1.0, "none", True, False),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, GAE | Exponential | GroupRelative | LeaveOneOut) else str(x),
)
def test_an_estimator_declares_its_needs(estimator: Advantage, gamma: float, normalize: str, groups: bool, critic: bool) -> None:
    assert (estimator.gamma, estimator.normalize) == (gamma, normalize)
    assert (estimator.needs_groups, estimator.needs_critic) == (groups, critic)
