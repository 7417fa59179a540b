"""Running normalisation, one for all environments, vectorised over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rgpo.batch import Array


class RunningMoments:
    """Mean and variance over everything seen, merged batch by batch (Chan et al. 1979); starts at (0, 1) with weight 1e-4."""

    def __init__(self, size: int) -> None:
        self.mean = np.zeros(size)
        self.var = np.ones(size)
        self.count = 1e-4
        self.scale = np.ones(size)  # 1/sqrt(var + eps), kept up to date for speed

    def update(self, batch: Array, epsilon: float = 1e-8) -> None:
        """Merge batch (E, size)."""
        size = len(batch)
        if size == 1:
            mean, var = batch[0], 0.0
        else:
            mean, var = batch.mean(0), batch.var(0)
        total = self.count + size
        delta = mean - self.mean
        self.mean = self.mean + delta * (size / total)
        self.var = (self.var * self.count + var * size + delta * delta * (self.count * size / total)) / total
        self.count = total
        self.scale = 1.0 / np.sqrt(self.var + epsilon)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "var": self.var.tolist(), "count": self.count, "scale": self.scale.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.var, self.scale = (np.array(state[key]) for key in ("mean", "var", "scale"))
        self.count = float(state["count"])


class ObservationNormalizer:
    """(o - mean)/std clipped to +-clip, as float32."""

    def __init__(self, size: int, clip: float) -> None:
        self.moments = RunningMoments(size)
        self.clip = clip

    def __call__(self, observation: Array, learn: bool = True) -> Array:
        """Normalise observation (E, D), first learning from it unless told not to."""
        if learn:
            self.moments.update(observation)
        scaled = (observation - self.moments.mean) * self.moments.scale
        return np.minimum(np.maximum(scaled, -self.clip), self.clip).astype(np.float32)


class RewardNormalizer:
    """r / std of the running discounted return, clipped to +-clip (no centring, so that no reward changes sign)."""

    def __init__(self, num_envs: int, gamma: float, clip: float) -> None:
        self.moments = RunningMoments(1)
        self.discounted = np.zeros(num_envs)
        self.gamma = gamma
        self.clip = clip

    def __call__(self, reward: Array, done: Array) -> Array:
        """Normalise reward (E,); a done environment starts its discounted return anew."""
        self.discounted = self.discounted * self.gamma + reward
        self.moments.update(self.discounted[:, None])
        scaled: Array = np.minimum(np.maximum(reward * self.moments.scale[0], -self.clip), self.clip)
        self.discounted *= ~done
        return scaled

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments.state_dict(), "discounted": self.discounted.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments.load_state_dict(state["moments"])
        self.discounted = np.array(state["discounted"])
