"""MuJoCo's library: gymnasium's models, and the addresses of its functions for C."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import gymnasium
import mujoco


def load_model(xml: str) -> mujoco.MjModel:
    """Compile one of gymnasium's models without MuJoCo's warnings about the file (deprecated attributes)."""
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / xml
    warn = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)  # the default prints them and writes MUJOCO_LOG.TXT to the current folder
    try:
        model = mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(warn)
    # each model is one tree, whose constraints form one island; searching for islands would cost 5 to 7 % of a step
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_ISLAND
    _stop_clocks()
    return model


def _stop_clocks() -> None:
    """Stop MuJoCo from timing the stages of every step in this process (mjData.timer), which takes a fifth of a step.

    The clock can be cleared only in MuJoCo's library, because the Python setter accepts no null pointer. A library without
    that symbol is left unchanged: slower, with the same numbers.
    """
    if mujoco.get_mjcb_time() is None:  # a user's callback is kept
        with suppress(AttributeError, OSError, ValueError):
            ctypes.c_void_p.in_dll(ctypes.CDLL(mujoco._functions.__file__), "mjcb_time").value = None


def function_address(name: str) -> int | None:
    """The address of a function of MuJoCo's library."""
    return ctypes.cast(getattr(ctypes.CDLL(mujoco._functions.__file__), name), ctypes.c_void_p).value


def has_callbacks() -> bool:
    """True if the process has a callback in MuJoCo, whose errors only Python can handle."""
    kinds = ("control", "passive", "contactfilter", "sensor", "act_dyn", "act_gain", "act_bias")
    return any(getattr(mujoco, f"get_mjcb_{kind}")() is not None for kind in kinds)
