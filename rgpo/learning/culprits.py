"""Find the first quantity that became NaN or infinite, after the fact, from the rollout and the failing gradient step.

Quantities are checked in the order of their computation: observation, reward, value, advantage and value target, parameters,
log-probability, gate, KL, loss, gradient. The step size is to blame only for the last of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rgpo import distributed
from rgpo.core.gate import GateLike, weight
from rgpo.core.rollout import Array, Rollout
from rgpo.errors import NonFiniteError
from rgpo.learning.loss import gate_inputs
from rgpo.learning.samples import PolicyOutput, Samples
from rgpo.learning.types import Policy, View

HUGE = 1e15  # its square, summed over the largest batches, approaches the limit of float32, 3e38
SCALE_REWARDS = "scale the rewards (control tasks: task.normalize_reward=true)"
CHECK_REFERENCE = "look for NaN in the weights of the starting model, or load it with dtype=float32"
SCALE_OBSERVATIONS = "scale the observations (control tasks: task.normalize_observation=true)"


class NonFiniteStep(NonFiniteError):
    """A gradient step whose loss or gradient is NaN or infinite.

    parts: the forward passes of its minibatch and their samples, with advantages as passed to the loss; flat (P,): the
    parameters at the step, None if a module holds them; remedy: None for the update's.
    """

    def __init__(
        self, where: str, parts: Sequence[tuple[View, Samples]], flat: Tensor | None = None, remedy: str | None = None
    ) -> None:
        self.where, self.parts, self.flat, self.remedy = where, parts, flat, remedy
        super().__init__(f"loss or gradient became NaN or infinite at {where}.")


class Credit(NamedTuple):
    """The name of an estimator and its output for a rollout; advantage and value_target (T, E)."""

    estimator: str
    advantage: Array
    value_target: Array


def explain(
    error: NonFiniteStep, policy: Policy, rollout: Rollout, credit: Credit, gates: dict[str, GateLike], remedy: str
) -> NonFiniteError:
    """An error that names the first culprit; gates: by name; remedy: for the update that diverged."""
    remedy = error.remedy or remedy
    found = next(_in_rollout(rollout, credit), None)
    if found is None and distributed.world_size() == 1:  # forward passes are collective operations
        found = next(_at_step(error, policy, rollout, gates, remedy), None)
    return NonFiniteError(f"{found or f'loss or gradient became NaN or infinite; {remedy}'} ({error.where}).")


def explain_shift(kl: float, policy: Policy, remedy: str) -> NonFiniteError:
    """An error for a KL(old || new) that is NaN or infinite after the last gradient step."""
    finite = distributed.world_size() > 1 or all(bool(p.isfinite().all()) for p in policy.parameters())
    what = f"KL(old || new) became {kl}" if finite else "parameters became NaN or infinite"
    return NonFiniteError(f"{what} after the last gradient step of the iteration; {remedy}.")


def _in_rollout(rollout: Rollout, credit: Credit) -> Iterator[str]:
    live = rollout.live()
    observation, reward = getattr(rollout, "observation", None), rollout.reward[live]
    if isinstance(observation, np.ndarray) and not np.isfinite(observation).all():
        yield "observation is NaN or infinite; check the environment"
    if not np.isfinite(reward).all():
        yield "reward is NaN or infinite; check the task's rewards"
    for value in (rollout.value, rollout.next_value):
        if not np.isfinite(value[live]).all():
            yield f"value function became NaN or infinite; {_overflow(observation)}"
    for name, x in (("advantage", credit.advantage[live]), ("value target", credit.value_target[live])):
        if not np.isfinite(x).all():
            largest = float(abs(reward).max())
            remedy = SCALE_REWARDS if largest > HUGE else "check the estimator"
            yield f"{name} of advantage={credit.estimator} is NaN or infinite for finite rewards up to {largest:.3g}; {remedy}"
        if not np.isfinite(x.astype(np.float32)).all():
            yield f"{name} of up to {abs(x).max():.3g} is infinite in float32; {SCALE_REWARDS}"


def _overflow(observation: object) -> str:
    """The remedy for a network whose output is not finite."""
    if isinstance(observation, np.ndarray) and (largest := float(abs(observation).max())) > HUGE:
        return f"the network overflows on observations as large as {largest:.3g}, {SCALE_OBSERVATIONS}"
    return "lower the learning rate, or start again from an earlier checkpoint"


@torch.no_grad()
def _at_step(error: NonFiniteStep, policy: Policy, rollout: Rollout, gates: dict[str, GateLike], remedy: str) -> Iterator[str]:
    for p in policy.parameters() if error.flat is None else [error.flat]:
        if not p.isfinite().all():
            yield f"parameters became NaN or infinite by the step before; {remedy}"
    for view, samples in error.parts:
        if not len(samples.advantage):
            continue
        yield from _in_samples(samples, rollout)
        out = policy.forward(view, flat=error.flat, kl=error.flat is not None)
        yield from _in_output(out, rollout, remedy)
        yield from _in_gates(out, samples, gates)
        yield from _in_losses(out, samples, remedy)
    yield f"gradient became NaN or infinite; {remedy}"


def _in_samples(samples: Samples, rollout: Rollout) -> Iterator[str]:
    for name, x in samples._asdict().items():
        if isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all():
            remedy = CHECK_REFERENCE if name == "logp_ref" else "check the task's rewards"
            if name in ("logp_old", "value_old"):
                remedy = _overflow(getattr(rollout, "observation", None))
            yield f"{name} of a sample is NaN or infinite; {remedy}"


def _in_output(out: PolicyOutput, rollout: Rollout, remedy: str) -> Iterator[str]:
    observation = getattr(rollout, "observation", None)
    huge = isinstance(observation, np.ndarray) and abs(observation).max() > HUGE
    names = {"logp": "log-probability of an action", "entropy": "entropy", "value": "value", "kl_old": "KL(old || new)"}
    for key, name in names.items():
        x = cast("Tensor | None", getattr(out, key))
        if x is not None and not x.isfinite().all():
            yield f"{name} became NaN or infinite; {_overflow(observation) if huge else remedy}"


def _in_gates(out: PolicyOutput, samples: Samples, gates: dict[str, GateLike]) -> Iterator[str]:
    seen = gate_inputs(out, samples)
    logp_ref = seen.logp_old + seen.d_old - seen.d_ref
    at = ((seen.d_old, seen.logp_old), (seen.d_ref, logp_ref))
    for (name, gate), (d, logp_old) in zip(gates.items(), at, strict=False):
        value, slope = (f(d, samples.advantage, logp_old) for f in (gate, partial(weight, gate)))
        for what, x in (("value", value), ("slope", slope)):
            bad = ~x.isfinite()
            if bad.any():
                at_one = f"log ratio {d[bad][0]:.3g} and advantage {samples.advantage[bad][0]:.3g}"
                yield f"{name}: its {what} is {x[bad][0]:.3g} at {at_one}; it must be finite at every log ratio"


def _in_losses(out: PolicyOutput, samples: Samples, remedy: str) -> Iterator[str]:
    if out.value is not None and not (out.value - samples.value_target).square().mean().isfinite():
        largest = float(samples.value_target.abs().max())
        yield f"value loss overflowed with value targets up to {largest:.3g}; {SCALE_REWARDS if largest > HUGE else remedy}"
    largest = float(samples.advantage.abs().max())
    if largest > HUGE:
        yield f"policy loss overflowed with advantages up to {largest:.3g}; {SCALE_REWARDS}"
