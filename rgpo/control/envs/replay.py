"""Resume environments that cannot save their state: the open episode is replayed from its actions.

A recording holds the state of np_random when the episode began and the actions since; the episode is reproduced if np_random, the
last observation and a checksum of all observations and rewards agree. State that an environment carries over from earlier
episodes is detected only if it changes one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict
from zlib import crc32

import numpy as np

from rgpo.control.envs.vector_env import Env, Floats
from rgpo.core.rollout import Array

MAX_ACTIONS = 10_000  # kept per episode, so that checkpoints do not grow with an endless one
TOO_LONG = f"its open episode had more than {MAX_ACTIONS:,} steps, whose actions are not kept"
NO_STATE = "its np_random is of a kind whose state cannot be saved"
NOT_REPRODUCED = "its open episode, played again, gives other numbers: it depends on more than np_random and the actions"
EARLIER = "the checkpoint was written by an earlier version"

RngState = dict[str, object]


class SavedRecording(TypedDict):
    """A ``Recording`` as plain values."""

    seed: int
    num_steps: int
    seeded: bool
    rng: object
    obstacle: str
    dtype: str
    actions: list[object]
    checksum: int


class SavedEpisode(SavedRecording):
    """A recording, and the result that replaying it must give; rng_now is missing in checkpoints of earlier versions."""

    rng_now: NotRequired[object]
    observation: list[float]


class Recording:
    """The open episode of one environment; checksum: of its observations and rewards."""

    def __init__(self) -> None:
        self.seed = self.num_steps = self.checksum = 0  # num_steps: of all episodes
        self.rng: RngState | None = None  # at the start of the episode; None if it began with the seed, or has no state
        self.seeded = True
        self.actions: list[Array] | None = []  # None: too many

    def begin(self, seed: int | None, rng: RngState | None, observation: memoryview) -> None:
        """A new episode: with a seed, or with np_random in the state rng."""
        self.seed, self.seeded = self.seed if seed is None else seed, seed is not None
        self.rng = None if self.seeded else rng
        self.actions = []
        self.checksum = crc32(observation)

    def add(self, action: Array, reward: memoryview, observation: memoryview) -> None:
        """One step; the recording keeps the action, which must be a copy."""
        self.num_steps += 1
        if self.actions is not None:
            self.actions.append(action)
            if len(self.actions) > MAX_ACTIONS:
                self.actions = None
        self.checksum = crc32(reward, crc32(observation, self.checksum))

    @property
    def obstacle(self) -> str:
        """The reason why the episode cannot be replayed; "" if it can."""
        if self.actions is None:
            return TOO_LONG
        return "" if self.seeded or self.rng is not None else NO_STATE

    def state_dict(self) -> SavedRecording:
        """The recording as plain values, without the actions if the episode cannot be replayed."""
        actions = [] if self.obstacle else self.actions or []
        return {
            "seed": self.seed,
            "num_steps": self.num_steps,
            "seeded": self.seeded,
            "rng": self.rng and plain(self.rng),
            "obstacle": self.obstacle,
            "dtype": actions[0].dtype.str if actions else "<f4",
            "actions": [action.tolist() for action in actions],
            "checksum": self.checksum,
        }

    def fresh_seed(self) -> int:
        """The seed of the episode that replaces one that cannot be replayed; it changes with every step."""
        return int(np.random.SeedSequence([self.seed, self.num_steps]).generate_state(1)[0] >> 1)


def rng_state(env: Env) -> RngState | None:
    """A copy of the state of the environment's np_random, for any of numpy's generators; None for other generators."""
    try:
        rng = env.unwrapped.np_random
        if isinstance(rng, np.random.RandomState):
            return dict(rng.get_state(legacy=False))
        return dict(rng.bit_generator.state) if isinstance(rng, np.random.Generator) else None
    except Exception:  # raised by a user's property
        return None


def set_rng_state(env: Env, state: RngState) -> None:
    """Raises: ValueError or TypeError if np_random is another generator."""
    rng = env.unwrapped.np_random
    if isinstance(rng, np.random.RandomState):
        rng.set_state(state)
    else:
        rng.bit_generator.state = state


def plain(node: object) -> object:
    """A generator's state as dicts, lists, strings and numbers."""
    if isinstance(node, Mapping):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, np.ndarray):
        return {"dtype": node.dtype.str, "array": node.tolist()}
    return node.item() if isinstance(node, np.generic) else node


def from_plain(node: object) -> object:
    """The inverse of ``plain``."""
    if not isinstance(node, Mapping):
        return node
    if set(node) == {"dtype", "array"}:
        return np.array(node["array"], node["dtype"])
    return {key: from_plain(value) for key, value in node.items()}


def same_bits(a: Floats, b: Floats) -> bool:
    """True if two arrays agree in every bit, NaN included."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()
