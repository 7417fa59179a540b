"""Console output that may fail without stopping a run and is wrapped at word boundaries on a terminal."""

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
    """Wrap text to lines of at most `width` characters, at spaces but never within a `command`.

    Continuation lines are indented to the second column of a line such as "  update   SGD(...)", otherwise by four more spaces.
    """
    lines: list[str] = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        head = re.match(r" +\S+ {2,}(?=\S)", line) or re.match(" *", line)
        assert head is not None  # " *" always matches
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
    """A text stream that discards output after its reader is gone or its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or discard it."""
        if self._terminal and "\x1b" not in text and "\r" not in text:  # not the output of a progress bar
            text = wrapped(text, shutil.get_terminal_size().columns)
        return self._tried(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Flush, or discard the buffer."""
        self._tried(self._stream.flush, None)

    def _tried(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except OSError:
            with suppress(OSError, ValueError):  # the stream has no descriptor
                null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(null, self._stream.fileno())  # for other writers, too, and for the flush at exit
                os.close(null)
            return otherwise


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Ignore a broken stdout or stderr, as in `rgpo-run ... | head -2`."""
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
