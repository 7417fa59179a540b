"""The formulas of gymnasium's four MuJoCo locomotion tasks, and the constants of each task and version.

    reward = (x' - x) / dt + bonus - c_ctrl ||a||^2 - c_contact ||clip(forces, -1, 1)||^2     dt = frame_skip * timestep
    terminated = a monitored coordinate of (qpos, qvel) left its open interval,  truncated = 1,000 steps elapsed

``a`` is the action clipped to the bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, nextafter
from typing import Literal, NamedTuple

import numpy as np

from rgpo.control.envs.vector_env import Floats

EPISODE_STEPS = 1000


class Interval(NamedTuple):
    """The open interval (low, high) of coordinates first..last-1 of (qpos, qvel); NaN is outside."""

    first: int
    last: int | None  # None: to the end
    low: float
    high: float


@dataclass(frozen=True)
class Locomotion:
    """One task in one version."""

    xml: str  # in gymnasium's assets folder
    frame_skip: int  # physics steps per environment step
    num_hidden: int  # leading positions left out of the observation
    ctrl_cost: float  # c_ctrl
    reset_noise: float  # half-width of the uniform noise on the initial positions
    velocity_noise: Literal["normal", "uniform"]  # on the initial velocities: N(0, reset_noise^2) or the same uniform
    bonus: Literal["none", "always", "healthy"]  # 1 per step; v4 adds it in the terminal step too, v5 does not
    healthy: tuple[Interval, ...] = ()
    velocity_clip: float = inf  # bound on the observed velocities
    measure: Literal["qpos", "torso"] = "qpos"  # x: first coordinate, or the torso's frame, which lags by one physics step
    contact_cost: float | None = None  # c_contact; None: no forces in reward and observation


_HALF_CHEETAH = Locomotion("half_cheetah.xml", 5, 1, 0.1, 0.1, "normal", "none")
_HOPPER = Locomotion(
    "hopper.xml",
    4,
    1,
    1e-3,
    5e-3,
    "uniform",
    "always",
    (Interval(2, None, -100.0, 100.0), Interval(1, 2, 0.7, inf), Interval(2, 3, -0.2, 0.2)),
    velocity_clip=10.0,
)
_WALKER = replace(_HOPPER, xml="walker2d.xml", healthy=(Interval(1, 2, 0.8, 2.0), Interval(2, 3, -1.0, 1.0)))
_ANT = Locomotion(
    "ant.xml",
    5,
    2,
    0.5,
    0.1,
    "normal",
    "always",
    # every coordinate finite and the height in the closed interval [0.2, 1]
    (Interval(0, None, -inf, inf), Interval(2, 3, nextafter(0.2, -inf), nextafter(1.0, inf))),
    measure="torso",
)
TASKS: dict[str, Locomotion] = {
    "HalfCheetah-v4": _HALF_CHEETAH,
    "HalfCheetah-v5": _HALF_CHEETAH,
    "Hopper-v4": _HOPPER,
    "Hopper-v5": replace(_HOPPER, bonus="healthy"),
    "Walker2d-v4": _WALKER,
    "Walker2d-v5": replace(_WALKER, bonus="healthy", xml="walker2d_v5.xml"),
    "Ant-v4": _ANT,
    "Ant-v5": replace(_ANT, bonus="healthy", contact_cost=5e-4),
}


def bounds(intervals: tuple[Interval, ...], size: int) -> tuple[int, int, Floats, Floats]:
    """The intersection of the intervals: first and last monitored coordinate and their bounds, (last - first,) each."""
    if not intervals:
        return 0, 0, np.zeros(0), np.zeros(0)
    first, last = min(i.first for i in intervals), max(i.last or size for i in intervals)
    low, high = np.full(last - first, -inf), np.full(last - first, inf)
    for interval in intervals:
        part = slice(interval.first - first, (interval.last or size) - first)
        low[part] = np.maximum(low[part], interval.low)
        high[part] = np.minimum(high[part], interval.high)
    return first, last, low, high
