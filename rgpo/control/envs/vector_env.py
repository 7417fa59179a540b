"""The protocol of vector environments: E copies of one environment, stepped in one process, whose state can be saved.

Shapes: E environments, D numbers per observation, A numbers per action. Observations are flat float64, or uint8 where the
environment's are; rewards are raw.

Autoreset is SAME_STEP: the step that ends an episode returns the first observation of the next episode, and the true last
observation as ``final_observation``. No transition of a rollout joins two episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypedDict

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rgpo.core.rollout import Array
from rgpo.errors import ConfigError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Env: TypeAlias = gymnasium.Env[object, object]  # one environment, in its wrappers
Wrap = Callable[[Env], Env]


class SavedEnvs(TypedDict):
    """The state of a ``VectorEnv`` as plain values; the contents of envs depend on the backend."""

    backend: str
    env_id: str
    envs: Sequence[Mapping[str, object]]


class Step(NamedTuple):
    """The result of one step of all environments; the arrays are buffers that the next step or reset overwrites."""

    observation: Floats  # (E, D) after autoreset
    terminated: Flags  # (E,) the environment ended the episode
    truncated: Flags  # (E,) a time limit cut the episode; both flags may be set
    final_observation: Floats  # (E, D) the true next observation; `observation` itself if no episode ended


class Restart(NamedTuple):
    """An environment whose open episode could not be restored and was replaced by a fresh one."""

    env: int
    observation: Floats  # (D,) the first of the fresh episode
    why: str


class VectorEnv(Protocol):
    """E copies of an environment. **Copy** any returned array that is kept beyond the next call."""

    num_envs: int
    observation_size: int  # D
    observation_space: spaces.Space[object]  # of one environment
    action_space: spaces.Space[object]  # of one environment
    time_limit: int | None  # steps after which gymnasium's TimeLimit truncates
    module: str  # defines the environment's class
    layers: tuple[str, ...]  # classes of wrappers and environment, the outermost first

    def reset(self, seed: int) -> Floats:
        """Start an episode in every environment, environment i seeded with seed + i; (E, D)."""
        ...

    def step(self, actions: Array) -> Step:
        """Act in every environment: numbers (E, A), clipped here to the bounds, or (E,) indices 0..n-1 for Discrete."""
        ...

    def rewards(self) -> Floats:
        """Raw rewards (T, E) of the T steps since the previous call; acting needs none, so they are computed together."""
        ...

    def state_dict(self) -> SavedEnvs:
        """Everything later steps depend on, as lists, dicts, strings, ints and floats only (exact in float64)."""
        ...

    def load_state_dict(self, state: SavedEnvs) -> list[Restart]:
        """Continue from a saved state: the following steps equal the uninterrupted ones bitwise, except after restarts."""
        ...

    def use_threads(self, num_threads: int) -> None:
        """Step on num_threads threads if several are useful; the results are the same bit for bit."""
        ...

    def close(self) -> None:
        """Release resources held by the environments."""
        ...


def check_saved(state: SavedEnvs, backend: str, env_id: str, num_envs: int) -> None:
    """Raises: ConfigError if another backend, another id or another number of environments wrote the state."""
    saved, present = (state["backend"], state["env_id"], len(state["envs"])), (backend, env_id, num_envs)
    if saved != present:
        raise ConfigError(
            f"checkpoint: its environments (backend, env_id, num_envs) = {saved} differ from the configured {present}; "
            "resume with the configuration that wrote it."
        )
