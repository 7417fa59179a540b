"""The structs of environments in rgpo/control/accel/collect.c, field by field."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p
from typing import NamedTuple

import numpy as np

from rgpo.core.rollout import Array


def address(array: Array, kind: type = np.float64) -> int:
    """The address of the first number of an array, which the caller keeps alive."""
    assert array.flags.c_contiguous and array.dtype == kind, (array.flags, array.dtype)
    return int(array.ctypes.data)


class Body(Structure):
    """One copy of a MuJoCo environment: addresses of its physics, and of its x."""

    _fields_ = [(name, c_void_p) for name in ("data", "ctrl", "qpos", "qvel", "torso", "pushes", "x")]


class Mujoco(Structure):
    """All copies of a MuJoCo environment, and where their steps are recorded."""

    _fields_ = [
        *((name, c_void_p) for name in ("model", "step", "find_forces")),
        *((name, c_int64) for name in ("frame_skip", "nq", "nv", "nu", "num_hidden", "num_forces", "num_threads")),
        *((name, c_void_p) for name in ("bodies", "coordinates", "forces", "low", "high")),
        ("velocity_clip", c_double),
        *((name, c_int64) for name in ("first", "last")),
        *((name, c_void_p) for name in ("lowest", "highest", "healthy")),
        *((name, c_void_p) for name in ("kept_distance", "kept_action", "kept_healthy", "kept_forces")),
    ]


class Cart(Structure):
    """All copies of CartPole."""

    _fields_ = [
        ("state", c_void_p),
        *((name, c_double) for name in ("force", "pole_moment", "mass", "pole_mass", "gravity", "length", "dt")),
        *((name, c_double) for name in ("max_x", "max_angle")),
        *((name, c_void_p) for name in ("cos", "sin")),
    ]


class Native(NamedTuple):
    """Copies of an environment as collect.c steps them."""

    struct: Mujoco | Cart
    observation: Array  # (E, D) after each step
    terminated: Array  # (E,)
    alive: tuple[object, ...]  # the arrays whose addresses struct holds
