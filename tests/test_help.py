"""The texts of rgpo-run without words and with --help."""

from __future__ import annotations

import pytest

from rgpo.cli import help
from rgpo.cli.config_dir import group_options


def test_three_commands_without_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert help.show([]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n  rgpo-run ") == 3 and "--help gate" in shown


@pytest.mark.parametrize("group", help.GROUPS)
def test_every_option_has_a_line_with_its_meaning(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help.show(["--help", group]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split(maxsplit=1) for line in lines if not line.startswith("    ")]
    assert [words[0] for words in first] == group_options(group)
    assert all(len(words) == 2 and len(words[1]) > 10 for words in first), first
    assert max(map(len, lines)) <= help.WIDTH


def test_an_unknown_group_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert help.show(["--help", "gates"]) == 2
    assert "--help gates: is not a group of options. Did you mean gate" in capsys.readouterr().err


def test_everything_is_named_without_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert help.show(["-h"]) == help.show(["task=hopper", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for group in help.GROUPS for name in group_options(group))
