"""Running normalizers, shared by all environments and vectorized over them."""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np

from rgpo.core.advantages import recurrence
from rgpo.core.rollout import Array

PRIOR_COUNT = 1e-4  # weight of the initial moments: mean 0, variance 1
EPSILON = 1e-8  # added to every variance


class ObservationMoments(TypedDict):
    """State of an ``ObservationNormalizer``."""

    mean: list[list[float]]  # (1, D)
    squares: list[list[float]]
    count: float


class RewardMoments(TypedDict):
    """State of a ``RewardNormalizer``."""

    mean: float
    var: float
    count: float
    discounted: list[float]  # (E,)


class ObservationNormalizer:
    """(o - mean)/std clipped to +-clip, float32, with the moments of all observations so far.

    The observations o_e of one step change the mean from m to m' and add sum_e (o_e - m)(o_e - m') to the sum of squared
    deviations from it (Welford 1962, for E observations at once).
    """

    def __init__(self, num_envs: int, size: int, clip: float) -> None:
        shape = (1, size)  # two axes, so that one environment needs no broadcasting
        self.clip = clip
        self.high, self.low = np.full(shape, clip), np.full(shape, -clip)
        self.mean = np.zeros(shape)
        self.squares = np.full(shape, PRIOR_COUNT)
        self.count = PRIOR_COUNT
        self.ones = np.ones((1, num_envs))  # ones @ x sums over environments in half the time of x.sum(0)

    def __call__(self, observation: Array, learn: bool = True) -> Array:
        """Normalize observation (E, D); learn: first update the moments with it."""
        centered = self._learn(observation) if learn else observation - self.mean
        std = self.squares / self.count
        std += EPSILON
        np.sqrt(std, out=std)
        centered /= std
        np.maximum(centered, self.low, out=centered)
        np.minimum(centered, self.high, out=centered)
        return centered.astype(np.float32)

    def _learn(self, observation: Array) -> Array:
        """Update the moments with observation (E, D); returns observation - mean."""
        gap = observation - self.mean
        self.count += len(observation)
        self.mean += self.ones.dot(gap) / self.count
        centered: Array = observation - self.mean
        gap *= centered
        self.squares += self.ones.dot(gap)
        return centered

    @property
    def overflowed(self) -> bool:
        """True once a moment is NaN or infinite: every later observation would become 0 or NaN."""
        return not np.isfinite(self.squares).all()

    def state_dict(self) -> ObservationMoments:
        return {"mean": self.mean.tolist(), "squares": self.squares.tolist(), "count": self.count}

    def load_state_dict(self, state: ObservationMoments) -> None:
        self.mean, self.squares = np.array(state["mean"]), np.array(state["squares"])
        self.count = float(state["count"])


class RewardNormalizer:
    """r / std of the running discounted return, clipped to +-clip; not centered, so that no reward changes sign.

    A whole rollout is normalized in one call, each step by the moments up to that step.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float) -> None:
        self.gamma = gamma
        self.clip = clip
        self.discounted = np.zeros(num_envs)
        self.mean, self.var, self.count = 0.0, 1.0, PRIOR_COUNT

    def __call__(self, reward: Array, done: Array) -> Array:
        """Normalize reward (T, E); an environment's discounted return restarts at 0 after done (T, E)."""
        num_steps, num_envs = reward.shape
        decay = np.full(reward.shape, self.gamma)
        decay[1:][done[:-1]] = 0.0
        discounted = recurrence(decay, reward, self.discounted)
        self.discounted = discounted[-1] * ~done[-1]

        gap = discounted - self.mean  # below: moments up to each step, about the mean before the rollout
        count = self.count + num_envs * np.arange(1, num_steps + 1)
        shift = np.cumsum(gap.sum(1)) / count
        var = (self.var * self.count + np.cumsum(np.square(gap).sum(1))) / count - shift**2
        self.mean, self.var, self.count = self.mean + float(shift[-1]), float(var[-1]), float(count[-1])
        scaled: Array = np.clip(reward / np.sqrt(var + EPSILON)[:, None], -self.clip, self.clip)
        return scaled

    @property
    def overflowed(self) -> bool:
        """True once the variance is NaN or infinite: every later reward would become 0 or NaN."""
        return not math.isfinite(self.var)

    def state_dict(self) -> RewardMoments:
        return {"mean": self.mean, "var": self.var, "count": self.count, "discounted": self.discounted.tolist()}

    def load_state_dict(self, state: RewardMoments) -> None:
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]
        self.discounted = np.array(state["discounted"])
