"""Lines on a terminal end at words; elsewhere they are written as they are."""

from __future__ import annotations

import io
import sys
from typing import TextIO, cast

import pytest

from rgpo.runtime.streams import tolerant_output, wrapped


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("", [""]),
        ("one two three four five", ["one two three four", "    five"]),
        ("  update  SGD(lr=1, epochs=2, clip=3)", ["  update  SGD(lr=1,", "          epochs=2,", "          clip=3)"]),
        ("see `rgpo-report a=1 b=2 c=3` now", ["see", "    `rgpo-report a=1 b=2 c=3`", "    now"]),
        (f"in /{30 * 'x'}/y", ["in", f"    /{30 * 'x'}/y"]),
        ("first\nthe second is longest\nthird", ["first", "the second is", "    longest", "third"]),
    ],
)
def test_lines_end_at_words(text: str, lines: list[str]) -> None:
    assert wrapped(text, 20).split("\n") == lines
    assert wrapped(text, 10_000) == text
    assert wrapped(text, 20).split() == text.split()


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "num_lines"), [(Terminal(), 3), (io.StringIO(), 1)])
def test_only_a_terminal_is_wrapped(stream: TextIO, num_lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", stream)
    with tolerant_output():
        print("word " * 45)
    assert len(cast(io.StringIO, stream).getvalue().splitlines()) == num_lines


def test_what_a_progress_bar_places_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    text = "\x1b[2K" + "x " * 100
    with tolerant_output():
        sys.stderr.write(text)
    assert terminal.getvalue() == text
