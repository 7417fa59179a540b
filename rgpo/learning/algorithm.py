"""The gate family: Algorithm = gate (x ref_gate) x advantage x penalty x update."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import cast

import numpy as np

from rgpo.core.advantages import Advantage
from rgpo.core.gate import GateLike
from rgpo.core.gates import Open
from rgpo.core.kl_penalty import Penalty
from rgpo.core.rollout import Array, Rollout
from rgpo.core.surrogate import Combination, GateObjective, check_combination
from rgpo.errors import ConfigError
from rgpo.learning.clock import Clock
from rgpo.learning.types import Metrics, Policy, Requirements, State, Update


@dataclass(kw_only=True)
class GateAlgorithm:
    """One point in the design space; impossible combinations are rejected at construction.

    Raises: ConfigError if the gate has zero gradient, the reference gate would be ignored or reads inputs that it cannot get,
    or a penalty in the loss is combined with a trust region.
    """

    gate: GateLike
    ref_gate: GateLike
    gate_combination: Combination
    advantage: Advantage
    penalty: Penalty
    update: Update

    def __post_init__(self) -> None:
        check_combination(self.gate_combination, self.gate, self.ref_gate)
        if isinstance(self.gate, Open):
            raise ConfigError("gate=open: has zero gradient; use it only for gate@ref_gate.")
        if self.update.trust_region and self.penalty.loss_coef > 0:
            raise ConfigError("penalty: update=natural_gradient has a trust region of its own, update.kl_max; use penalty=none.")

    @property
    def requirements(self) -> Requirements:
        """Requirements that the task must meet."""
        reference = "gate@ref_gate" if not isinstance(self.ref_gate, Open) else ""
        divergence = self.penalty.divergence
        if not reference and self.penalty.reward_coef > 0:
            reference = "penalty"
        if not reference and divergence is not None and divergence.anchor == "reference":
            reference = "penalty.anchor"
        return Requirements(
            gamma=self.advantage.gamma,
            critic=self.advantage.needs_critic,
            num_minibatches=self.update.num_minibatches,
            groups=self.advantage.needs_groups,
            reference=reference,
            reward_kl_coef=self.penalty.reward_coef,
            whole_parameters=self.update.trust_region,
            exact_kl=divergence is not None and divergence.estimator == "exact",
            compiled=getattr(self.update, "compile", False) is True,
        )

    @property
    def note(self) -> str:
        """The update's note on compilation."""
        return self.update.note

    def describe(self) -> dict[str, str]:
        """Map each axis to its class and knobs, leaving out a reference gate that is open and a penalty that does nothing."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.ref_gate, Open) and type(self.gate_combination).__name__ != "Geometric":
            del parts["gate_combination"]
        if isinstance(self.ref_gate, Open):
            del parts["ref_gate"]
        if self.penalty.loss_coef == 0 and self.penalty.reward_coef == 0:
            del parts["penalty"]
        return {name: describe_part(part) for name, part in parts.items()}

    def validate(self, batch_size: int) -> None:
        """Raises: ConfigError if the update's minibatches do not divide the batch, or are too small to standardize over."""
        self.update.validate(batch_size, self.advantage.normalize)

    def setup(self, policy: Policy, num_iterations: int, seed: int) -> None:
        """Prepare to train policy for num_iterations."""
        from rgpo.learning.loss import GateLoss

        self.objective = GateObjective(gate=self.gate, ref_gate=self.ref_gate, combine=self.gate_combination)
        loss = GateLoss(objective=self.objective, divergence=self.penalty.divergence)
        self.update.setup(policy, loss, normalize=self.advantage.normalize, num_iterations=num_iterations, seed=seed)

    @np.errstate(over="ignore", invalid="ignore")  # a more detailed error takes the place of numpy's warning
    def learn(self, policy: Policy, rollout: Rollout, measure_variance: bool) -> Metrics:
        """Run one iteration: advantages, update and diagnostics.

        Raises: NonFiniteError if a loss, gradient or KL is NaN or infinite; it names the first quantity that was.
        """
        from rgpo.learning import culprits, diagnostics
        from rgpo.learning.gradients import group_gradients
        from rgpo.learning.loss import standardize

        clock = Clock()
        advantage_TE, target_TE = estimate(self.advantage, rollout)
        batch = policy.make_batch(rollout, advantage_TE, target_TE)
        metrics = diagnostics.credit_statistics(rollout, advantage_TE, target_TE, self.advantage.needs_critic)
        raw = batch.samples.advantage
        advantage = raw if self.advantage.normalize == "none" else standardize(raw)  # of the whole batch
        standardized = batch.with_advantage(advantage)
        clock.add("update")
        groups = rollout.groups()
        gradients = partial(group_gradients, policy, standardized, self.objective, groups)
        if measure_variance:
            metrics["gradvar/num_groups"] = len(groups)
            metrics |= diagnostics.gradient_variance("before", gradients(), groups.shape[1])
            clock.add("gradvar")
        metrics["kl/coef"] = self.penalty.loss_coef
        remedy = getattr(self.update, "remedy", "check the update")
        try:
            learned, shift = self.update(
                policy, standardized if self.advantage.normalize == "batch" else batch, self.penalty.loss_coef
            )
        except culprits.NonFiniteStep as error:
            credit = culprits.Credit(type(self.advantage).__name__, advantage_TE, target_TE)
            gates = {f"{key}={describe_part(getattr(self, key))}": getattr(self, key) for key in ("gate", "ref_gate")}
            raise culprits.explain(error, policy, rollout, credit, gates, remedy) from error
        metrics |= learned
        clock.add("update")
        metrics |= diagnostics.update_statistics(shift, self.gate, standardized.samples)
        clock.add("diagnostics")
        if measure_variance:
            metrics |= diagnostics.gradient_variance("after", gradients(), groups.shape[1])
            clock.add("gradvar")
        kl_old, divergence = cast(float, metrics["kl/old_exact"]), self.penalty.divergence
        if not math.isfinite(kl_old):
            raise culprits.explain_shift(kl_old, policy, remedy)
        if batch.samples.logp_ref is not None:
            metrics |= diagnostics.reference_statistics(shift.log_ratio[-1], batch.samples)
        from_reference = divergence is not None and divergence.anchor == "reference"
        self.penalty.observe(cast(float, metrics["kl/ref_exact"]) if from_reference else kl_old)
        self.gate.observe(kl_old)
        return metrics | clock.seconds

    def state_dict(self) -> State:
        return {key: getattr(self, key).state_dict() for key in ("gate", "penalty", "update")}

    def load_state_dict(self, state: State) -> None:
        for key, value in state.items():
            getattr(self, key).load_state_dict(value)


def estimate(advantage: Advantage, rollout: Rollout) -> tuple[Array, Array]:
    """Advantage and value target, both (T, E).

    Raises: ValueError if a user's estimator returns other shapes.
    """
    found = advantage(rollout)
    shapes = [np.shape(x) for x in found]
    if shapes != [rollout.reward.shape] * 2:
        wanted = f"advantage and value target of the reward's shape {rollout.reward.shape}"
        raise ValueError(f"advantage={type(advantage).__name__}: must return {wanted}, not {shapes}.")
    return found


def rows_with_advantage(rollout: Rollout, advantage: Advantage | None) -> list[dict[str, object]]:
    """The rollout's rows with each environment's mean advantage over its live steps; NaN without an estimator."""
    if not rollout.rows or advantage is None:
        return [{"advantage": math.nan, **row} for row in rollout.rows]
    live = rollout.live()
    means = (estimate(advantage, rollout)[0] * live).sum(0) / live.sum(0)
    return [{"advantage": float(mean), **row} for mean, row in zip(means, rollout.rows, strict=True)]


def describe_part(part: object) -> str:
    """Class name and constructor arguments, as in Sigmoid(sharpness=10)."""
    if isinstance(part, float):
        return f"{part:g}"
    if not is_dataclass(part):
        return str(part)
    knobs = {field.name: getattr(part, field.name) for field in fields(part) if field.init}
    shown = [f"{key}={describe_part(x)}" for key, x in knobs.items() if x is not None and (key, x) != ("scale", "none")]
    return f"{type(part).__name__}({', '.join(shown)})"
