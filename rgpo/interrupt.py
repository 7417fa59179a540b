"""SIGINT and SIGTERM in the commands, outside of a run. Imports are kept to a minimum, because handlers must be set early."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # not imported from typing, which would double the time until this point
if TYPE_CHECKING:
    from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def exit_at_once() -> None:
    """Let SIGINT and SIGTERM end the process at once (code 130 or 143): during imports and checks there is nothing to finish."""
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # a background command in a shell script ignores SIGINT
            signal.signal(number, _exit)


class Raising:
    """In a ``with`` block, SIGINT raises KeyboardInterrupt and SIGTERM SystemExit(143), so that cleanup code runs.

    It applies only to signals handled by exit_at_once(); handlers set by other callers are kept.
    """

    def __enter__(self) -> None:
        self._numbers = [number for number in NUMBERS if signal.getsignal(number) is _exit]
        for number in self._numbers:
            signal.signal(number, _raise)

    def __exit__(self, *_: object) -> None:
        for number in self._numbers:
            signal.signal(number, _exit)


class Deferred:
    """In a ``with`` block, signals are held until the end of the block: an exception in C++ code would kill the process."""

    def __enter__(self) -> None:
        self._received: list[int] = []
        handlers = {number: signal.getsignal(number) for number in NUMBERS}
        self._before = {number: handler for number, handler in handlers.items() if callable(handler)} if _in_main_thread() else {}
        for number in self._before:
            signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for received in self._received[:1]:
            signal.raise_signal(received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
