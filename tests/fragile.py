"""An environment whose number 2 always raises and whose number 3 kills its own process, once in a working folder."""

import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np


class Fragile(gymnasium.Env):
    """Two zeros to see, two actions, reward 1, ten steps an episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, number: int = 1) -> None:
        self.number, self.num_steps = number, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.num_steps += 1
        if self.number == 2 and self.num_steps > 100:
            raise RuntimeError("number two always breaks")
        if self.number == 3 and self.num_steps > 150 and not Path("killed").exists():
            wait_for_a_completed_run()
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros(2, np.float32), 1.0, self.num_steps % 10 == 0, False, {}


def wait_for_a_completed_run(patience_s: float = 60.0) -> None:
    """So that the process that is killed has a finished neighbor, however busy the machine is."""
    ends = time.monotonic() + patience_s
    while time.monotonic() < ends:
        if any('"completed"' in file.read_text() for file in Path("results").glob("*/*/state.json")):
            return
        time.sleep(0.05)


gymnasium.register("Fragile-v0", Fragile)
