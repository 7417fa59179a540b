"""Stale rollouts, which wait before they are trained on, and the policies in the denominators of their ratios.

By default that is the behavior policy mu, which drew the actions. In the decoupled objective (Hilton et al. 2022,
arXiv 2110.00641) it is a proximal policy, here the one at the start of the iteration, and advantages are multiplied by
min(pi_prox/mu, cap): E_mu[pi_prox/mu gate(pi/pi_prox) A]. The choice of proximal policy and the cap are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from rgpo.control.policy import ControlPolicy, ControlRollout, Old
from rgpo.learning.types import State

STEPS = ("observation", "action", "reward", "terminated", "done", "value", "next_value")


def kept(policy: ControlPolicy, rollout: ControlRollout) -> ControlRollout:
    """A new rollout together with its behavior policy."""
    return replace(rollout, old=policy.old(rollout))


def decoupled(policy: ControlPolicy, rollout: ControlRollout, cap: float) -> ControlRollout:
    """A waiting rollout with the current policy as the denominator of its ratios, and the correction min(current/mu, cap)."""
    assert rollout.old is not None
    present = policy.old(rollout)
    gap = present.logp - rollout.old.logp
    moved = {"sampler/log_ratio_abs_mean": gap.abs().mean().item(), "sampler/log_ratio_abs_max": gap.abs().max().item()}
    correction = gap.clamp(max=80.0).exp().clamp(max=cap)  # e^80 is finite in float32
    return replace(rollout, old=present._replace(correction=correction), metrics=rollout.metrics | moved)


def rollout_state(rollout: ControlRollout) -> State:
    """A waiting rollout as tensors and numbers, for a checkpoint."""
    assert rollout.old is not None
    steps = {name: torch.from_numpy(getattr(rollout, name)) for name in STEPS}
    return {"steps": steps, "metrics": rollout.metrics, "logp": rollout.old.logp, "parameters": list(rollout.old.parameters)}


def restore_rollout(state: Mapping[str, object]) -> ControlRollout:
    """The inverse of ``rollout_state``."""
    steps = {name: x.numpy() for name, x in cast(dict[str, Tensor], state["steps"]).items()}
    old = Old(cast(Tensor, state["logp"]), tuple(cast(list[Tensor], state["parameters"])))
    return ControlRollout(
        observation=steps["observation"],
        action=steps["action"],
        reward=steps["reward"],
        terminated=steps["terminated"],
        done=steps["done"],
        value=steps["value"],
        next_value=steps["next_value"],
        metrics=cast(dict[str, float], state["metrics"]),
        old=old,
    )
