"""A gate whose sharpness adapts to a KL target."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from rgpo.core.gate import Curve, Gate, GateBatch
from rgpo.core.ranges import POSITIVE, check_fields, declared_range
from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(kw_only=True)
class AdaptiveSharpness:
    """Dual ascent on a gate's sharpness k, once per update: log k += rate clip(KL/KL_target - 1, -1, 1) (our choice).

    k starts at the wrapped gate's sharpness and stays in [min_sharpness, max_sharpness]. It is kept as a tensor, so that it
    can change without recompiling the step.
    Raises: ConfigError if the starting k is not within the bounds, or the gate has no sharpness that can vary between them.
    """

    gate: Gate
    kl_target: float = field(metadata=POSITIVE)  # nats
    rate: float = field(metadata=POSITIVE)
    min_sharpness: float = field(metadata=POSITIVE)
    max_sharpness: float = field(metadata=POSITIVE)
    sharpness: float = field(init=False, repr=False)  # state, so not part of repr(), by which compiled code is keyed
    _live: Gate = field(init=False, repr=False, compare=False)  # copy of gate whose sharpness and divisor are tensors

    def __post_init__(self) -> None:
        check_fields(self, "gate")
        low, high = self.min_sharpness, self.max_sharpness
        require(low < high, "gate.min_sharpness", low, f"must be below max_sharpness={high}.")
        start = self._check_gate()
        require(
            low <= start <= high,
            "gate.gate.sharpness",
            start,
            f"must start in [min_sharpness, max_sharpness] = [{low}, {high}].",
        )
        import torch

        self._live = copy.copy(self.gate)
        vars(self._live).update(sharpness=torch.ones(()), _divisor=torch.ones(()))
        self._set(start)

    def _check_gate(self) -> float:
        """The wrapped gate's own sharpness.

        Raises: ConfigError if the gate has no sharpness that may change, or rejects one of the bounds.
        """
        name = type(self.gate).__name__
        knobs = [f for f in fields(self.gate) if f.name.startswith("sharpness")] if isinstance(self.gate, Gate) else []
        if [f.name for f in knobs] != ["sharpness"]:
            raise ConfigError(f"gate.gate={name}: needs a gate with exactly one sharpness, for example SignAwareSigmoid.")
        if self.gate.constants_depend_on_sharpness:
            raise ConfigError(f"gate.gate={name}: its constants belong to a fixed sharpness; choose SigmoidLog instead.")
        if (allowed := declared_range(knobs[0])) is not None:
            allowed.check("gate.min_sharpness", self.min_sharpness)
            allowed.check("gate.max_sharpness", self.max_sharpness)
        for bound in (self.min_sharpness, self.max_sharpness):
            changes: dict[str, Any] = {"sharpness": bound}
            replace(self.gate, **changes)  # raises if scale=unit has no slope to divide by at this bound
        return float(vars(self.gate)["sharpness"])

    @property
    def needs_logp_old(self) -> bool:
        return self.gate.needs_logp_old

    @property
    def needs_batch(self) -> bool:
        return self.gate.needs_batch

    def prepare(self, batch: GateBatch) -> Curve:
        return self._live.prepare(batch)

    def __call__(self, log_ratio: Tensor, advantage: Tensor, logp_old: Tensor | None = None) -> Tensor:
        return self._live(log_ratio, advantage, logp_old)

    @property
    def scale(self) -> str:
        """The wrapped gate's scale."""
        return self.gate.scale

    def weight_at_one(self) -> float:
        """w(1) after scaling, at the current sharpness."""
        return float(self._live.weight_at_one())

    def observe(self, kl: float) -> None:
        """Take one step of dual ascent on log k, given the KL(old || new) of the last update (nats)."""
        log_k = math.log(self.sharpness) + self.rate * min(max(kl / self.kl_target - 1, -1.0), 1.0)
        self._set(min(max(math.exp(min(log_k, 100.0)), self.min_sharpness), self.max_sharpness))

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
