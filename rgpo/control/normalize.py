"""Running normalisation, one for all environments, vectorised over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rgpo.core.recurrence import recurrence
from rgpo.core.rollout import Array

PRIOR_COUNT = 1e-4  # weight of the moments (0, 1) that everything starts from
EPSILON = 1e-8  # added to every variance


class ObservationNormalizer:
    """(o - mean)/std clipped to +-clip, as float32, with the moments of all seen so far.

    A step's observations o_e move the mean from m to m', and the sum of squares about it grows by sum_e (o_e - m)(o_e - m')
    (Welford 1962, for several at once).
    """

    def __init__(self, num_envs: int, size: int, clip: float) -> None:
        shape = (1, size)  # two axes, as observations have: nothing is broadcast where there is one environment
        self.high, self.low = np.full(shape, clip), np.full(shape, -clip)
        self.mean = np.zeros(shape)
        self.squares = np.full(shape, PRIOR_COUNT)
        self.count = PRIOR_COUNT
        self._ones = np.ones((1, num_envs))  # a product with them sums over environments in half of the time of a sum

    def __call__(self, observation: Array, learn: bool = True) -> Array:
        """Normalise observation (E, D), first learning from it unless told not to."""
        centred = self._learn(observation) if learn else observation - self.mean
        std = self.squares / self.count
        std += EPSILON
        np.sqrt(std, out=std)
        centred /= std
        np.maximum(centred, self.low, out=centred)
        np.minimum(centred, self.high, out=centred)
        return centred.astype(np.float32)

    def _learn(self, observation: Array) -> Array:
        """Take the observations into the moments; what remains of them without the mean."""
        gap = observation - self.mean
        self.count += len(observation)
        self.mean += self._ones.dot(gap) / self.count
        centred: Array = observation - self.mean
        gap *= centred
        self.squares += self._ones.dot(gap)
        return centred

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "squares": self.squares.tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.squares = np.array(state["mean"]), np.array(state["squares"])
        self.count = float(state["count"])


class RewardNormalizer:
    """r / std of the running discounted return, clipped to +-clip (no centring, so that no reward changes sign).

    Acting does not see rewards, so a whole rollout is normalised at once, each step by what was known at that step.
    """

    def __init__(self, num_envs: int, gamma: float, clip: float) -> None:
        self.gamma = gamma
        self.clip = clip
        self.discounted = np.zeros(num_envs)
        self.mean, self.var, self.count = 0.0, 1.0, PRIOR_COUNT

    def __call__(self, reward: Array, done: Array) -> Array:
        """Normalise reward (T, E); the discounted return of an environment starts anew after done (T, E)."""
        num_steps, num_envs = reward.shape
        decay = np.full(reward.shape, self.gamma)
        decay[1:][done[:-1]] = 0.0
        discounted = recurrence(decay, reward, self.discounted)
        self.discounted = discounted[-1] * ~done[-1]

        gap = discounted - self.mean  # moments about the mean before the rollout, of everything up to each step
        count = self.count + num_envs * np.arange(1, num_steps + 1)
        shift = np.cumsum(gap.sum(1)) / count
        var = (self.var * self.count + np.cumsum(np.square(gap).sum(1))) / count - shift**2
        self.mean, self.var, self.count = self.mean + float(shift[-1]), float(var[-1]), float(count[-1])
        scaled: Array = np.clip(reward / np.sqrt(var + EPSILON)[:, None], -self.clip, self.clip)
        return scaled

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("mean", "var", "count")} | {"discounted": self.discounted.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.var, self.count = state["mean"], state["var"], state["count"]
        self.discounted = np.array(state["discounted"])
