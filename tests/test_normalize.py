"""Running normalizers against their definitions, computed step by step over all observations so far."""

from __future__ import annotations

import numpy as np
import pytest

from rgpo.control.normalize import EPSILON, PRIOR_COUNT, ObservationNormalizer, RewardNormalizer
from rgpo.core.advantages import recurrence


def moments(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of seen (n, D) together with the prior (0, 1) of weight PRIOR_COUNT."""
    count = PRIOR_COUNT + len(seen)
    mean = seen.sum(0) / count
    second = (PRIOR_COUNT + np.square(seen).sum(0)) / count
    return mean, second - mean**2


@pytest.mark.parametrize("num_envs", [1, 2, 8])
def test_observations_are_normalized_by_all_so_far(num_envs: int) -> None:
    rng = np.random.default_rng(num_envs)
    normalize = ObservationNormalizer(num_envs, 3, 1.5)
    observations = rng.normal([5.0, -1.0, 0.0], [0.3, 2.0, 1.0], (200, num_envs, 3))
    for t, observation in enumerate(observations):
        ours = normalize(observation)
        mean, var = moments(observations[: t + 1].reshape(-1, 3))
        np.testing.assert_allclose(ours, np.clip((observation - mean) / np.sqrt(var + EPSILON), -1.5, 1.5), rtol=1e-4, atol=1e-4)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(normalize.squares[0] / normalize.count, var, rtol=1e-9)
    assert np.array_equal(normalize(observations[0], learn=False), normalize(observations[0], learn=False))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_rewards_are_scaled_by_the_discounted_return_so_far(num_envs: int) -> None:
    rng = np.random.default_rng(num_envs)
    reward, done = rng.normal(1.0, 2.0, (120, num_envs)), rng.random((120, num_envs)) < 0.1
    discounted, running = np.zeros((120, num_envs)), np.zeros(num_envs)
    expected = np.zeros((120, num_envs))
    for t in range(120):
        running = running * 0.9 + reward[t]
        discounted[t] = running
        var = moments(discounted[: t + 1].reshape(-1, 1))[1]
        expected[t] = np.clip(reward[t] / np.sqrt(var + EPSILON), -2.0, 2.0)
        running = running * ~done[t]
    scale = RewardNormalizer(num_envs, 0.9, 2.0)
    ours = np.concatenate([scale(reward[:50], done[:50]), scale(reward[50:51], done[50:51]), scale(reward[51:], done[51:])])
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    np.testing.assert_allclose(scale.discounted, running)
    assert np.abs(ours).max() == 2.0  # the clip was reached


def test_a_restored_normalizer_continues_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    rewards, done = rng.normal(size=(2, 30, 2)), rng.random((30, 2)) < 0.2
    first, second = RewardNormalizer(2, 0.99, 10.0), RewardNormalizer(2, 0.99, 10.0)
    first(rewards[0], done)
    second.load_state_dict(first.state_dict())
    assert np.array_equal(first(rewards[1], done), second(rewards[1], done))
    one, other = ObservationNormalizer(1, 2, 10.0), ObservationNormalizer(1, 2, 10.0)
    for row in rewards[0]:
        one(row[None])
    other.load_state_dict(one.state_dict())
    assert np.array_equal(one(rewards[1, :1]), other(rewards[1, :1]))


def test_the_recurrence_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    decay, drive, start = rng.random((20, 4)), rng.normal(size=(20, 4)), rng.normal(size=4)
    y, rows = start, []
    for a, b in zip(decay, drive, strict=True):
        y = a * y + b
        rows.append(y)
    assert np.array_equal(recurrence(decay, drive, start), rows)
