"""Errors whose message is one sentence for the user: key, value and remedy."""

from __future__ import annotations

import difflib
import re
import shlex
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SHOWN, MAX_LINE = 300, 4000  # most characters shown of a text from a file, and in a terminal line
LONGEST = 1200  # most characters in a message


class ConfigError(ValueError):
    """A configuration that cannot run; the command line prints the message on one line and exits with code 2.

    Messages may quote user input: control characters are escaped, and the middle of a very long message is cut out.
    """

    def __init__(self, sentence: str) -> None:
        text = sentence if len(sentence) <= LONGEST else f"{sentence[: LONGEST // 2]} ... {sentence[-LONGEST // 2 :]}"
        super().__init__(escaped(text))


class NonFiniteError(ArithmeticError):
    """A loss, gradient, observation or reward is NaN or infinite; the run stops and keeps its results so far."""


class EnvironmentFault(RuntimeError):
    """An environment raised an exception or returned an invalid value; its own error, if any, is the ``__cause__``."""


class OutOfMemory(Exception):
    """The machine or its GPU ran out of memory."""


class StorageError(RuntimeError):
    """The run folder can no longer be written; the run stops and keeps its results so far."""


EXPLAINED = (EnvironmentFault, NonFiniteError, OutOfMemory, StorageError)  # reported without a traceback


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory allocation failed, here or in an environment; on a CPU, torch raises a plain RuntimeError for this."""
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
    """The first line of an error's message without its final period, or the error's type if that is empty or unreadable."""
    lines = _message(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _message(error: BaseException) -> str:
    """The message of an error; "" if its __str__ raises."""
    try:
        return str(error).strip()
    except Exception:
        return ""


def is_own(error: BaseException) -> bool:
    """True for our own signal exceptions and KeyboardInterrupt, which end a run and must not be blamed on user code."""
    return isinstance(error, KeyboardInterrupt) or (
        not isinstance(error, Exception) and type(error).__module__.startswith("rgpo.")
    )


@contextmanager
def blamed(explain: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Convert anything that user code raises in this context, SystemExit included, to the error that explain returns for it.

    Raises: the explained error; KeyboardInterrupt and our own signal exceptions are passed on unchanged.
    """
    try:
        yield
    except BaseException as error:
        if is_own(error):
            raise
        raise explain(error) from error


def described(error: BaseException) -> str:
    """The type of an error with the first line of its message or, without a message, the file and line that raised it."""
    name, frames = type(error).__name__, traceback.extract_tb(error.__traceback__)
    if _message(error) or not frames:
        return f"{name}: {first_line(error)}"
    return f"{name} in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"


def printable(text: str, limit: int = MAX_SHOWN) -> str:
    """Untrusted text as one line for a terminal: control characters are escaped, and the text is cut at limit characters."""
    shown = escaped(re.sub(r"[\n\r\t]+", " ", text[:limit]))
    return shown if len(text) <= limit else f"{shown}... ({len(text):,} characters)"


def shell_word(text: str) -> str:
    """Quote a text for the shell, as $'...' if it contains unprintable characters."""
    if text.isprintable():
        return shlex.quote(text)
    escapes = {ord("\\"): "\\\\", ord("'"): "\\'"}
    return "$'" + "".join(c.translate(escapes) if c.isprintable() else _bytes(c) for c in text) + "'"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def escaped(text: str) -> str:
    """Escape control, direction and invisible characters, which a terminal would interpret or not show."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
