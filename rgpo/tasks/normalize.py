"""Running normalisation, one for all environments, vectorised over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rgpo.batch import Array
from rgpo.recurrence import recurrence

PRIOR_COUNT = 1e-4  # weight of the moments (0, 1) that everything starts from
EPSILON = 1e-8  # added to every variance


class ObservationNormalizer:
    """(o - mean)/std clipped to +-clip, as float32; moments over all seen so far, merged step by step (Chan et al. 1979)."""

    def __init__(self, size: int, clip: float) -> None:
        self.clip = clip
        self.mean = np.zeros(size)
        self.var = np.ones(size)
        self.count = PRIOR_COUNT

    def __call__(self, observation: Array, learn: bool = True) -> Array:
        """Normalise observation (E, D), first learning from it unless told not to."""
        if learn:
            self._update(observation)
        scaled = (observation - self.mean) / np.sqrt(self.var + EPSILON)
        return np.minimum(np.maximum(scaled, -self.clip), self.clip).astype(np.float32)

    def _update(self, batch: Array) -> None:
        size = len(batch)
        total = self.count + size
        if size == 1:
            delta = batch[0] - self.mean
            self.var *= self.count / total
        else:
            mean = np.add.reduce(batch) / size
            delta = mean - self.mean
            self.var = (self.var * self.count + np.add.reduce(np.square(batch - mean))) / total
        self.mean += delta * (size / total)
        self.var += delta * delta * (self.count * size / total**2)
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "var": self.var.tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.var = np.array(state["mean"]), np.array(state["var"])
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
