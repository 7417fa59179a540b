"""The time limit of environments that step together: one count of steps, and the start of each episode."""

from __future__ import annotations

import numpy as np

from rgpo.control.envs.vector_env import Flags


class TimeLimit:
    """Truncates the episodes of E environments after `limit` steps; until the oldest is due, a step costs one comparison."""

    def __init__(self, num_envs: int, limit: int) -> None:
        self.limit = limit
        self.never = np.zeros(num_envs, bool)  # what ``advance`` returns while no episode times out
        self._clock, self._first_end = 0, limit  # steps taken, and the clock at which the oldest episode times out
        self._begun = np.zeros(num_envs, np.int64)  # the clock when each episode began

    @property
    def left(self) -> int:
        """Steps until the oldest episode times out."""
        return self._first_end - self._clock

    def advance(self, num_steps: int = 1) -> Flags:
        """Count num_steps steps, at most ``left``; returns truncated (E,)."""
        self._clock += num_steps
        return self.never if self._clock < self._first_end else self._clock - self._begun >= self.limit

    def elapsed(self, i: int) -> int:
        """Steps of the open episode of environment i."""
        return self._clock - int(self._begun[i])

    def set_elapsed(self, i: int, elapsed: int) -> None:
        """Record that the open episode of environment i has taken `elapsed` steps."""
        self._begun[i] = self._clock - elapsed
        self._first_end = int(self._begun.min()) + self.limit
