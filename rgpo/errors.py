"""Errors that speak to the user: one sentence with key, value and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot run; the command line prints it in one line and exits with 2."""


class NonFiniteError(ArithmeticError):
    """A loss, gradient, observation or reward that is NaN or infinite; the run stops and keeps what it has."""


class OutOfMemory(Exception):
    """Memory of the machine or of its GPU ran out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; torch raises a plain RuntimeError for that on a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


class StorageError(RuntimeError):
    """The run folder cannot be written to any more; the run stops and keeps what it has."""


def require(ok: bool, key: str, value: object, remedy: str) -> None:
    """Raise ConfigError "key=value: remedy" unless ok."""
    if not ok:
        raise ConfigError(f"{key}={value}: {remedy}")


def require_compile(value: object) -> None:
    """Refuse anything but auto, true and false for update.compile."""
    require(isinstance(value, bool) or value == "auto", "update.compile", value, "choose auto, true or false.")


def close_matches(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause " Did you mean a, b?" or "" for a misspelt name."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """What an error says first, without its full stop, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
