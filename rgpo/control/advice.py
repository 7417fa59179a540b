"""Reject algorithms that control tasks cannot serve, and warn about settings that do not suit an environment."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from gymnasium import spaces

from rgpo.control.actions import column_bounds
from rgpo.control.cnn import NatureCNN, OwnNetwork
from rgpo.control.envs.vector_env import VectorEnv
from rgpo.control.mlp import MLP
from rgpo.control.spaces import describe
from rgpo.errors import ConfigError, require
from rgpo.learning.types import Requirements

REFERENCE_REMEDY = "leave gate@ref_gate=open and use penalty=none, or fixed or adaptive with penalty.anchor=old."
SMALL_SHARE = 0.1  # warn if a new policy reaches less of the bounds, or if fewer of its actions are within them
MAX_CHANNELS = 4  # of a picture of floats
LARGE_IMAGE = 32  # pixels; an array is taken for a picture only if two of its sides are at least this long


def refuse_unserved(requirements: Requirements, policy: MLP | NatureCNN | OwnNetwork) -> None:
    """Raises: ConfigError for an algorithm that control tasks or this policy cannot serve."""
    if requirements.pairs:
        raise ConfigError("algorithm: learns from stored pairs of answers, which control tasks lack; use task=qwen_rlhf.")
    if requirements.groups:
        raise ConfigError("advantage: group_relative and leave_one_out compare completions; use gae on control tasks.")
    if requirements.reference:
        raise ConfigError(f"{requirements.reference}: control tasks have no reference policy; {REFERENCE_REMEDY}")
    served = isinstance(policy, MLP) or not requirements.compiled
    require(served, "update.compile", True, "updates are compiled with policy@task.policy=mlp only; use auto or false.")


def advice(env_id: str, env: VectorEnv, action_bounds: str, policy: MLP | NatureCNN | OwnNetwork) -> tuple[str, ...]:
    """Sentences about settings that are allowed but do not suit the environment.

    Raises: ConfigError if actions are to be rescaled but none has finite bounds.
    """
    return tuple(_advice(env_id, env, action_bounds, math.exp(policy.log_std_init), not isinstance(policy, MLP)))


def _advice(env_id: str, env: VectorEnv, action_bounds: str, std: float, images: bool) -> Iterator[str]:
    low, high = column_bounds(describe(env.action_space, "action"))
    finite = np.isfinite(high - low)
    usable = bool(finite.any()) or action_bounds == "clip"
    require(usable, "task.action_bounds", action_bounds, f"{env_id} has no actions with finite bounds; use clip.")
    if action_bounds == "clip":
        worst = max((_misfit(*pair, std) for pair in zip(low[finite], high[finite], strict=True)), default=None)
        if worst is not None and worst[0]:
            yield f"task.action_bounds=clip: {env_id} {worst[1]}; task.action_bounds=rescale maps [-1, 1] to the bounds."
    pictures = [] if images else [box.shape for box in _boxes(env.observation_space) if _is_picture(box)]
    if pictures:
        shape = " x ".join(map(str, pictures[0]))
        alone = isinstance(env.observation_space, spaces.Box)
        own = "a network of your own or a wrapper that encodes them suits a Dict or Tuple"
        remedy = "policy@task.policy=cnn convolves them" if alone else own
        yield f"task.policy: an MLP reads the {shape} pixels of {env_id} as a list of numbers; {remedy}."


def _boxes(space: spaces.Space[object]) -> Iterator[spaces.Box]:
    """The Boxes among a space and its parts."""
    if isinstance(space, spaces.Box):
        yield space
    parts = space.values() if isinstance(space, spaces.Dict) else space if isinstance(space, spaces.Tuple) else ()
    for part in parts:
        yield from _boxes(part)


def _is_picture(box: spaces.Box) -> bool:
    """True for bytes with two large sides, and for other numbers with two large sides and up to four channels."""
    large = sorted(box.shape)[-2:-1] >= [LARGE_IMAGE]
    return large and (box.dtype == np.uint8 or (len(box.shape) == 3 and min(box.shape) <= MAX_CHANNELS))


def _misfit(low: float, high: float, std: float) -> tuple[bool, str]:
    """True if actions with mean 0 and this std miss most of the bounds, and a clause; misfits sort last."""
    reached = max(0.0, min(high, 2 * std) - max(low, -2 * std)) / max(high - low, 1e-300)
    inside = (math.erf(high / std / math.sqrt(2)) - math.erf(low / std / math.sqrt(2))) / 2
    span = f"has actions in [{low:g}, {high:g}]"
    if inside < SMALL_SHARE:
        return True, f"{span}, where {100 * inside:.2g} % of a new policy's actions fall"
    return reached < SMALL_SHARE, f"{span}, of which a new policy reaches {100 * reached:.2g} %"
