"""SIGINT and SIGTERM in the commands, outside of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def exit_at_once() -> None:
    """On a signal, end the process with exit code 130 or 143: during imports and checks there is nothing to finish."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as for a command in the background of a script
            signal.signal(number, _exit)


@contextmanager
def raising() -> Iterator[None]:
    """On a signal, raise KeyboardInterrupt or SystemExit(143) inside, so that what is under way is tidied up."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    if _exit not in before.values():  # the caller of a function, who is not a command, has handlers of his own
        yield
        return
    for number, handler in before.items():
        signal.signal(number, _raise if handler is _exit else handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
