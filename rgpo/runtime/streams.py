"""Output that may break without stopping a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar, cast

T = TypeVar("T")


class _Tolerant:
    """A text stream; once nobody reads it or its disk is full, what is written to it is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or discard it."""
        return self._tried(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Flush, or discard what is buffered."""
        self._tried(self._stream.flush, None)

    def _tried(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except OSError:
            with suppress(OSError, ValueError):  # a stream without a descriptor
                null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(null, self._stream.fileno())  # also for other writers, and for the flush when the interpreter exits
                os.close(null)
            return otherwise


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Ignore a broken stdout or stderr, such as that of `rgpo-run ... | head -2`."""
    mine = {name: _Tolerant(stream) for name in ("stdout", "stderr") if not isinstance(stream := getattr(sys, name), _Tolerant)}
    before = {name: getattr(sys, name) for name in mine}
    for name, stream in mine.items():
        if before[name] is not None:
            setattr(sys, name, cast(TextIO, stream))
    try:
        yield
    finally:
        for name, stream in mine.items():
            if getattr(sys, name) is stream:
                setattr(sys, name, before[name])
