"""Checks for NaN and infinite numbers from an environment or policy, which are reported before they turn the loss into NaN."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rgpo.core.rollout import Array
from rgpo.errors import NonFiniteError

BECAME = "became NaN, infinite or too large for float32"


def require_steps(
    env_id: str,
    seen: Array,
    actions: Array,
    following: Array | None = None,
    finals: Mapping[tuple[int, int], Array] | None = None,
) -> None:
    """``require_actions``, then ``require_observations``; actions at a NaN observation are not blamed on the policy."""
    require_actions(seen, actions)
    require_observations(env_id, seen, following, finals or {})


def require_observations(env_id: str, seen: Array, following: Array | None, finals: Mapping[tuple[int, int], Array]) -> None:
    """seen: (T, E, D) before each step; following: (E, D) after the last one; finals: by step and environment, of ended episodes.

    Raises: NonFiniteError with the first step after which one is not finite.
    """
    steps = np.flatnonzero(~np.isfinite(seen).all((1, 2))).tolist()
    steps += [] if following is None or np.isfinite(following).all() else [len(seen)]
    last = [t for (t, _), x in finals.items() if not np.isfinite(x).all()]
    for name, found in (("observation", steps), ("last observation of an episode", last)):
        if found:
            raise NonFiniteError(f"{name} of {env_id} {BECAME} at step {found[0]} of the rollout.")


def require_actions(seen: Array, actions: Array) -> None:
    """seen: (t, E, D) observations; actions: (t, E, ...) that the policy drew at them.

    Raises: NonFiniteError with the first step at which a finite observation led to a non-finite action.
    """
    drawn = np.logical_and.reduce(np.isfinite(actions.reshape(*actions.shape[:2], -1)), 2)
    bad = np.flatnonzero((~drawn & np.isfinite(seen).all(2)).any(1))
    if bad.size:
        remedy = "lower update.lr, or look at task.policy if it is your own"
        raise NonFiniteError(f"the policy's actions became NaN or infinite at step {bad[0]} of the rollout; {remedy}.")


def require_rewards(env_id: str, reward: Array) -> None:
    """reward: (T, E), as returned by the environment.

    Raises: NonFiniteError with the first step whose reward is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(reward).all(1))
    if bad.size:
        raise NonFiniteError(f"reward of {env_id} became NaN or infinite at step {bad[0]} of the rollout.")


def require_moments(env_id: str, key: str, overflowed: bool) -> None:
    """Raises: NonFiniteError if the normalizer of task.key overflowed.

    Otherwise, finite numbers whose squares are infinite would silently be normalized to 0.
    """
    if overflowed:
        what = f"{key.removeprefix('normalize_')}s of {env_id}"
        raise NonFiniteError(f"{what} are too large for the running variance of task.{key}; scale them.")


def require_evaluated(name: str, env_id: str, x: Array) -> None:
    """Raises: NonFiniteError if an observation or a reward of an evaluation is not finite."""
    if not np.isfinite(x).all():
        raise NonFiniteError(f"{name} of {env_id} became NaN or infinite in an evaluation episode.")
