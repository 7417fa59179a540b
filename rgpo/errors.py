"""Errors with a message for the user: one sentence with key, value and remedy."""

from __future__ import annotations

import difflib
import re
import shlex
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SHOWN, MAX_LINE = 300, 4000  # characters of a text from a file, and of a line on a terminal
LONGEST = 1200  # characters of a sentence


class ConfigError(ValueError):
    """A configuration that cannot run; the command line prints it in one line and exits with 2.

    Whatever a user typed may be quoted: control characters are escaped, and the middle of a very long sentence is left out.
    """

    def __init__(self, sentence: str) -> None:
        text = sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"
        super().__init__(escaped(text))


class NonFiniteError(ArithmeticError):
    """A loss, gradient, observation or reward that is NaN or infinite; the run stops and keeps what it has."""


class EnvironmentFault(RuntimeError):
    """A call of an environment that raised or returned what it must not, as a sentence; its own error is the cause."""


class OutOfMemory(Exception):
    """The machine or its GPU ran out of memory."""


class StorageError(RuntimeError):
    """The run folder can no longer be written; the run stops and keeps what it has."""


EXPLAINED = (EnvironmentFault, NonFiniteError, OutOfMemory, StorageError)  # errors of a run whose sentence is enough


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed, for which torch raises a plain RuntimeError on a CPU, here or in an environment."""
    if isinstance(error, EnvironmentFault) and error.__cause__ is not None:
        return is_out_of_memory(error.__cause__)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def require(ok: bool, key: str, value: object, remedy: str) -> None:
    """Raises: ConfigError("key=value: remedy") unless ok."""
    if not ok:
        raise ConfigError(f"{key}={value}: {remedy}")


def close_matches(name: str, known: Iterable[str], count: int = 3) -> str:
    """The clause " Did you mean a, b?" for a misspelled name; "" if nothing is close."""
    near = difflib.get_close_matches(name[:100], list(known), n=count, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its period; the error's type if there is no message, or it cannot be read."""
    lines = _message(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _message(error: BaseException) -> str:
    """The message of an error; "" where its own __str__ fails."""
    try:
        return str(error).strip()
    except Exception:
        return ""


def is_own(error: BaseException) -> bool:
    """True for what ends a run from outside, a signal or Ctrl-C, and is no error of an environment."""
    return isinstance(error, KeyboardInterrupt) or (
        not isinstance(error, Exception) and type(error).__module__.startswith("rgpo.")
    )


@contextmanager
def blamed(explain: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Whatever a user's code raises inside, sys.exit() included, becomes the error that explain returns for it.

    Raises: the explained error; what ends a run from outside as it is.
    """
    try:
        yield
    except BaseException as error:
        if is_own(error):
            raise
        raise explain(error) from error


def described(error: BaseException) -> str:
    """The type of an error and the first line of its message; the place where it was raised if it has no message."""
    name, frames = type(error).__name__, traceback.extract_tb(error.__traceback__)
    if _message(error) or not frames:
        return f"{name}: {first_line(error)}"
    return f"{name} in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """A text from a file or an error as one line for a terminal: control characters escaped, the rest cut at the limit."""
    shown = escaped(re.sub(r"[\n\r\t]+", " ", text[:limit]))
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def shell_word(text: str) -> str:
    """A text as a word of a shell's command line; as $'...' if a terminal would not show it."""
    if text.isprintable():
        return shlex.quote(text)
    escapes = {ord("\\"): "\\\\", ord("'"): "\\'"}
    return "$'" + "".join(c.translate(escapes) if c.isprintable() else _bytes(c) for c in text) + "'"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def escaped(text: str) -> str:
    """The text with escapes for what a terminal would obey or not show: control, direction and invisible characters."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
