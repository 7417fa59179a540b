"""Algorithm = gate (x ref_gate) x advantage x penalty x update."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from rgpo.core.gate import Gate
from rgpo.core.gates import Open
from rgpo.core.rollout import Array, Moved, Rollout
from rgpo.core.surrogate import Dual, check_dual, surrogate
from rgpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.types import Adam, AdamSettings, CriticSettings, LocalModel


class Advantage(Protocol):
    """Credit: a rollout to advantage and value target, both (T, E) float64."""

    gamma: float
    normalize: str  # what the update standardises over: minibatch, batch or none
    needs_groups: ClassVar[bool]  # whether it compares completions of one prompt
    needs_critic: ClassVar[bool]  # whether it reads values, so that a critic must be trained

    def __call__(self, rollout: Rollout) -> tuple[Array, Array]: ...


class Penalty(Protocol):
    """The KL penalty's coefficients and their schedule."""

    coef: float  # in the loss
    reward_kl_coef: float  # in the reward, of tasks with a reference policy

    def observe(self, kl: float) -> None: ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class Policy(Protocol):
    """What is trained: parameters and what they make of a rollout."""

    def make_batch(self, rollout: Any, advantage: Array, value_target: Array) -> tuple[Any, dict[str, Any]]:
        """The samples of a rollout with their old log-probabilities, and what they say of advantages and critic."""

    def moved(self, batch: Any) -> Moved:
        """The present policy compared with the one that collected the batch."""

    def group_gradients(self, batch: Any, advantage: Tensor, objective: Any, groups: Array) -> Iterable[Tensor]:
        """The policy gradient (P,) of each group of samples, without the penalty; groups (M, b)."""

    def adam(self, settings: AdamSettings) -> Adam:
        """What climbs for update=sgd: policy and critic together."""

    def critic_adam(self, settings: CriticSettings) -> Adam:
        """What fits the critic for update=natural_gradient."""

    def local_model(self, batch: Any, advantage: Tensor, objective: Any) -> LocalModel:
        """Gradient, Fisher products and trial steps at the present parameters, for update=natural_gradient."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


class Update(Protocol):
    """How to climb; owns the optimiser."""

    trust_region: bool  # whether the update holds the KL divergence by itself, so that a penalty would be ignored
    note: str

    def check(self, batch_size: int, normalize: str) -> None: ...

    def setup(
        self, policy: Any, objective: Any, penalised: bool, num_iterations: int, seed: int, normalize: str = "minibatch"
    ) -> None: ...

    def __call__(self, policy: Any, batch: Any, kl_coef: float) -> tuple[dict[str, float], Moved]:
        """Metrics, and what each epoch left: Moved with the epochs in front."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(kw_only=True)
class Algorithm:
    """One point in the design space; impossible combinations are refused at construction with a ConfigError."""

    gate: Gate
    ref_gate: Gate
    dual: Dual
    advantage: Advantage
    penalty: Penalty
    update: Update
    kl_spike_threshold: float  # nats

    def __post_init__(self) -> None:
        check_dual(self.dual, self.ref_gate)
        if isinstance(self.gate, Open):
            raise ConfigError("gate=open: has weight 0 everywhere and learns nothing, it is meant for gate@ref_gate.")
        if self.update.trust_region and self.penalty.coef > 0:
            raise ConfigError("penalty: natural_gradient keeps its own trust region update.kl_max, use penalty=none.")

    def refuse_reference(self, task: str) -> None:
        """Refuse a gate or a KL that reads a reference policy where there is none."""
        if not isinstance(self.ref_gate, Open):
            raise ConfigError(f"gate@ref_gate: {task} tasks have no reference policy, leave it open.")
        if self.penalty.reward_kl_coef != 0:
            raise ConfigError(f"penalty.reward_kl_coef: {task} tasks have no reference policy, set it to 0.")

    def setup(self, policy: Policy, num_iterations: int, seed: int) -> None:
        """Get ready to train policy for num_iterations."""
        self.objective = partial(surrogate, gate=self.gate, ref_gate=self.ref_gate, dual=self.dual)
        self.update.setup(policy, self.objective, self.penalty.coef > 0, num_iterations, seed, self.advantage.normalize)

    def learn(self, policy: Policy, rollout: Rollout, measure_variance: bool) -> dict[str, Any]:
        """One iteration's learning; returns its metrics. NonFiniteError if a loss, gradient or KL is not finite."""
        from rgpo.learning import diagnostics
        from rgpo.learning.loss import standardise

        clock = Clock()
        batch, metrics = policy.make_batch(rollout, *self.advantage(rollout))
        advantage = batch.advantage if self.advantage.normalize == "none" else standardise(batch.advantage)
        if self.advantage.normalize == "batch":
            batch = batch._replace(advantage=advantage)
        clock.add("time/update_s")
        groups = rollout.groups()
        gradients = partial(policy.group_gradients, batch, advantage, self.objective, groups)
        if measure_variance:
            metrics["gradvar/num_groups"] = len(groups)
            metrics |= diagnostics.gradient_variance("before", gradients(), groups.shape[1])
            clock.add("time/gradvar_s")
        metrics["kl/coef"] = self.penalty.coef
        learnt, after = self.update(policy, batch, self.penalty.coef)
        metrics |= learnt
        clock.add("time/update_s")
        metrics |= diagnostics.update_statistics(after, self.gate, advantage, self.kl_spike_threshold)
        clock.add("time/diagnostics_s")
        if measure_variance:
            metrics |= diagnostics.gradient_variance("after", gradients(), groups.shape[1])
            clock.add("time/gradvar_s")
        self.penalty.observe(metrics.get("kl/ref_exact", metrics["kl/old_exact"]))  # the reference's where there is one
        self.gate.observe(metrics["kl/old_exact"])
        return metrics | clock.seconds

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key).state_dict() for key in ("gate", "penalty", "update")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            getattr(self, key).load_state_dict(value)


class Clock:
    """Seconds spent since the last call, added up by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def add(self, name: str) -> None:
        """Charge the time since the last call to name."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
