"""Output that may break without stopping a run, in lines that end at words on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar, cast

T = TypeVar("T")


def wrapped(text: str, width: int) -> str:
    """The text with lines of at most `width` characters, broken between words and never within a `command`.

    Continued lines are indented as far as the second column of a line such as "  update   SGD(...)", else by four more spaces.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        head = re.match(r" +\S+ {2,}(?=\S)", line) or re.match(" *", line)
        assert head is not None  # no spaces are some, too
        indent = len(head[0]) + (0 if head[0].strip() else 4)
        found = head[0]
        for word in re.findall(r"`[^`]*`\S*|\S+", line[len(head[0]) :]):
            if len(found) + len(word) > width and found.strip():
                lines.append(found.rstrip())
                found = " " * indent
            found += f"{word} "
        lines.append(found.rstrip())
    return "\n".join(lines)


class _Tolerant:
    """A text stream; once nobody reads it or its disk is full, what is written to it is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or discard it."""
        if self._terminal and "\x1b" not in text and "\r" not in text:  # which a progress bar places itself
            text = wrapped(text, shutil.get_terminal_size().columns)
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
