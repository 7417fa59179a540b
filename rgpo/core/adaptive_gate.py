"""A gate whose sharpness follows the KL divergence."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from rgpo.core.gate import Curve
from rgpo.core.gates import Budget, SigmoidMatched
from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class AdaptiveSharpness:
    """Dual ascent on any gate's sharpness, once per update: log k += rate clip(KL/KL_target - 1, -1, 1) (our choice).

    k stays in [min_sharpness, max_sharpness] and starts at the wrapped gate's own. It is kept as a tensor, so that a
    compiled step sees it change without being compiled again.
    """

    gate: Curve
    kl_target: float = 0.01  # nats
    rate: float = 0.2
    min_sharpness: float = 1.0
    max_sharpness: float = 60.0
    sharpness: float = field(init=False)
    _live: Any = field(init=False, repr=False)  # the wrapped gate with tensors for its sharpness and divisor

    def __post_init__(self) -> None:
        name = type(self.gate).__name__
        if {"sharpness", "sharpness_neg"} & {f.name for f in fields(self.gate)} != {"sharpness"}:
            raise ConfigError(f"gate.gate={name}: needs a gate with exactly one sharpness, for example SigmoidSigned.")
        if isinstance(self.gate, SigmoidMatched | Budget):
            raise ConfigError(f"gate.gate={name}: its constants belong to a fixed sharpness, choose SigmoidLog instead.")
        require(self.kl_target > 0, "gate.kl_target", self.kl_target, "must be positive (nats).")
        require(self.rate > 0, "gate.rate", self.rate, "must be positive.")
        require(
            0 < self.min_sharpness < self.max_sharpness,
            "gate.min_sharpness",
            self.min_sharpness,
            f"must be positive and below max_sharpness={self.max_sharpness}.",
        )
        start = vars(self.gate)["sharpness"]
        require(
            self.min_sharpness <= start <= self.max_sharpness,
            "gate.gate.sharpness",
            start,
            f"must start in [min_sharpness, max_sharpness] = [{self.min_sharpness}, {self.max_sharpness}].",
        )
        import torch

        self._live = copy.copy(self.gate)
        vars(self._live).update(sharpness=torch.ones(()), _divisor=torch.ones(()))
        self._set(start)

    def __call__(self, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        value: Tensor = self._live(log_ratio, advantage)
        return value

    @property
    def scale(self) -> str:
        """The wrapped gate's scale."""
        return self.gate.scale

    def weight_at_one(self) -> float:
        """w(1) after scaling, at the present sharpness."""
        return float(self._live.weight_at_one())

    def observe(self, kl: float) -> None:
        """One step of dual ascent on log k for the KL(old || new) of the last update (nats)."""
        log_k = math.log(self.sharpness) + self.rate * min(max(kl / self.kl_target - 1, -1.0), 1.0)
        self._set(min(max(math.exp(log_k), self.min_sharpness), self.max_sharpness))

    def _set(self, sharpness: float) -> None:
        self.sharpness = sharpness
        tensors = vars(self._live)
        tensors["sharpness"].fill_(sharpness)
        if self.scale == "unit":
            tensors["_divisor"].fill_(self._live._slope_at_one())

    def state_dict(self) -> dict[str, float]:
        return {"sharpness": self.sharpness}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._set(state["sharpness"])
