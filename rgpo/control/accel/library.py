"""collect.c as a shared library, compiled on first use, and the functions of numpy that it calls."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import warnings
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path

import numpy as np

from rgpo.control.accel.layout import Function, Numpy
from rgpo.errors import ConfigError, first_line
from rgpo.learning.accel import compiler_cache

SOURCE = Path(__file__).with_name("collect.c")
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC", "-pthread")  # nothing fused, for numpy's bits
PATIENCE_S = 10.0  # compiling takes a quarter of a second


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None without a C compiler, or with a warning if it fails or its output cannot be stored safely."""
    chosen = os.environ.get("CC") or "cc"
    try:
        words = shlex.split(chosen)
        compiler = shutil.which(words[0]) if words else None
        return None if compiler is None else _load([compiler, *words[1:], *FLAGS])
    except (ConfigError, OSError, AttributeError, ValueError, subprocess.SubprocessError) as error:
        why = f"CC={chosen}: no library came of it ({first_line(error)})"
        warnings.warn(f"{why}; environments are stepped in Python, with the same numbers but slower.", stacklevel=2)
        return None


def _load(command: list[str]) -> ctypes.CDLL:
    known = (hashlib.sha256(SOURCE.read_bytes()).hexdigest(), command, platform.machine(), platform.libc_ver())
    with compiler_cache.verified(f"collect {known}") as record:
        path = record.code / "collect.so"
        if not path.exists():
            line = [*command, str(SOURCE), "-o", str(path), "-lm"]
            subprocess.run(line, check=True, capture_output=True, timeout=PATIENCE_S)  # noqa: S603  # no shell
        found = ctypes.CDLL(str(path))
        found.collect.restype, found.collect.argtypes = c_int64, (c_void_p, c_int64, c_int64)
        found.prepare_and_act.restype, found.prepare_and_act.argtypes = None, (c_void_p,)
        return found


@functools.cache
def numpy_functions() -> Numpy | None:
    """Addresses of the functions that numpy uses; None if their names differ from those in numpy's packages on PyPI."""
    try:
        blas = ctypes.CDLL(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]  # a name that numpy does not export
        products = [ctypes.cast(getattr(blas, f"scipy_cblas_{name}64_"), c_void_p).value for name in ("sgemm", "sgemv", "dgemv")]
    except (AttributeError, OSError):
        return None
    loops = [_loop(np.tanh, np.float32), _loop(np.cos, np.float64), _loop(np.sin, np.float64)]
    return None if None in loops else Numpy(*products, *loops)


class _Ufunc(ctypes.Structure):
    """The first fields of PyUFuncObject, numpy's public struct."""

    _fields_ = [
        ("head", ctypes.c_byte * object.__basicsize__),
        *((name, c_int) for name in ("nin", "nout", "nargs", "identity")),
        *((name, c_void_p) for name in ("functions", "data")),
        *((name, c_int) for name in ("ntypes", "reserved")),
        ("name", ctypes.c_char_p),
        ("types", c_void_p),
    ]


def _loop(ufunc: np.ufunc, kind: type) -> Function | None:
    """The inner loop of a unary ufunc for numbers of this kind; None if it has none."""
    view = _Ufunc.from_address(id(ufunc))
    wanted = bytes([np.dtype(kind).num] * 2)
    for i in range(view.ntypes):
        if ctypes.string_at(view.types + 2 * i, 2) == wanted:
            call, data = (ctypes.cast(x, ctypes.POINTER(c_void_p))[i] if x else None for x in (view.functions, view.data))
            return Function(call, data)
    return None
