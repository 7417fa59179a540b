"""The structs of collect.c, field by field, except those of environments, which are in rgpo/control/envs/native.py."""

from __future__ import annotations

from ctypes import Structure, c_double, c_int64, c_void_p


class Function(Structure):
    """One of numpy's loops over arrays."""

    _fields_ = [("call", c_void_p), ("data", c_void_p)]


class Numpy(Structure):
    """Functions of numpy and of the BLAS that it ships."""

    _fields_ = [
        *((name, c_void_p) for name in ("sgemm", "sgemv", "dgemv")),
        *((name, Function) for name in ("tanh", "cos", "sin")),
    ]


class Layer(Structure):
    """One linear layer, and the address for its outputs."""

    _fields_ = [("inputs", c_int64), ("outputs", c_int64), ("weight", c_void_p), ("bias", c_void_p), ("out", c_void_p)]


class Network(Structure):
    """The actor's layers."""

    _fields_ = [("num_layers", c_int64), ("layers", c_void_p), ("is_tanh", c_int64)]


class Normalizer(Structure):
    """Moments of an ``ObservationNormalizer``, and scratch memory."""

    _fields_ = [
        *((name, c_void_p) for name in ("mean", "squares", "gap", "sum", "ones")),
        *((name, c_double) for name in ("count", "epsilon", "clip")),
    ]


class Job(Structure):
    """Everything that a rollout needs."""

    _fields_ = [
        *((name, c_int64) for name in ("num_envs", "size", "outputs")),
        *((name, c_void_p) for name in ("numpy", "network", "normalizer", "mujoco", "cart")),
        *((name, c_void_p) for name in ("observation", "terminated", "seen", "noise", "actions")),
    ]
