"""The check of the project's English: it finds each pattern, and accepts good text."""

from pathlib import Path

import prose
import pytest

BAD = {
    "# it is normalised": "British spelling",
    "# the optimiser's neighbours": "British spelling",
    "# re-initialised with what it learnt": "British spelling",
    "penalised = centre = 1": "British spelling",
    "def load_materials(): ...": "forbidden word",
    "# which the update climbs": "forbidden word",
    "text = 'Deviations, confessed'": "forbidden word",
    "text = 'rank 1 died without a word'": "forbidden phrase",
    "# however it was come by": "forbidden phrase",
    "# 2.5 nats a token": '"a X" for "per X"',
    "# takes 30 s a run": '"a X" for "per X"',
    "# 16 MB a microbatch": '"a X" for "per X"',
    "# one row a seed": '"a X" for "per X"',
    "text = f'{seconds:.1f} s an update'": '"a X" for "per X"',
    "# state.json says which": "says",
    "# the first rank tells the others": "tells",
    "# what an update asks of a policy": "asks",
    "# (E, A) as the environment wants it": "wants",
    "# the token wants RAY_AUTH_MODE": "wants",
    "# config.yaml lies beside it": "lies",
    "# it lies in the folder": "lies",
    "# the rules stand in claims.py": "stands",
    "# what the gate looks at": "looks",
    "text = 'the run goes on'": "goes on",
    '"""What the runner calls."""': "docstring begins with a question word",
    "def f():\n    '''How far the policy moved.'''": "docstring begins with a question word",
    'class A:\n    """Whether it is done."""': "docstring begins with a question word",
    "async def f():\n    '''Who collects.'''": "docstring begins with a question word",
    'def f():\n    """Refuse a key. ConfigError."""': "bare error as a sentence",
    'def f():\n    """Refuse a key.\n\n    ValueError.\n    """': "bare error as a sentence",
}
GOOD = [
    '"""The paper says that w = r g\'; whatever the abstract does not say is our choice."""',
    '"""Rows of the results.\n\nWhat follows is not the first word. Raises: ConfigError if k is 0."""',
    "text = 'What a docstring may not begin with is fine in a string'",
    'raise ValueError("gate.k=0: must lie strictly between 0 and 1")',
    "# if you want a figure, ask for it; masks tell them apart; pi stands for the policy; a stand-in",
    "# a look at the table; it looks like a sigmoid; it is looked up",
    "# nats per token, 30 s per run, 3 s after a run, twice a second",
    '# Kingma 2015, "Adam: A Method for Stochastic Optimisation of Neural Models"',
    "# `normalised` is TRL's key",
    "# otherwise precise noise, four hours, a supervised contour, the exercise, emphasis, optimistic",
    "text = f'{said} {wanted}'",
    "modes = ('said', 'told')",
    "# the run goes on  # prose: ok",
    'text = """\nthe run goes on\n"""  # prose: ok',
    "color = center = normalize = 1",
]


def names(tmp_path: Path, text: str, file: str = "sample.py") -> list[str]:
    path = tmp_path / file
    path.write_text(text + "\n")
    return [name for _, name, _ in prose.find(path)]


@pytest.mark.parametrize("text", BAD)
def test_finds(tmp_path: Path, text: str) -> None:
    assert BAD[text] in names(tmp_path, text)


@pytest.mark.parametrize("text", GOOD)
def test_accepts(tmp_path: Path, text: str) -> None:
    assert names(tmp_path, text) == []


def test_every_pattern_has_a_sample() -> None:
    patterns = {name for name, _ in prose.TEXT} | {"docstring begins with a question word", "bare error as a sentence"}
    assert set(BAD.values()) == patterns


@pytest.mark.parametrize("file", ["page.md", "key.yaml", "page.md.j2", "index.html"])
def test_other_files_are_read_line_by_line(tmp_path: Path, file: str) -> None:
    text = "first\nit goes\non, with an optimiser\n`optimiser` is code\nan optimiser <!-- prose: ok -->"
    (tmp_path / file).write_text(text)
    assert [(line, name) for line, name, _ in prose.find(tmp_path / file)] == [(2, "goes on"), (3, "British spelling")]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text("x = 1\n# the optimiser\n")
    (tmp_path / "b.txt").write_text("the optimiser")
    assert prose.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path}/a.py:2: British spelling: # the optimiser\n"
    (tmp_path / "a.py").write_text("x = 1\n# the optimizer\n")
    assert prose.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""


def test_exceptions_exist_and_have_reasons() -> None:
    root = Path(__file__).parents[1]
    assert all((root / file).is_file() and reason for file, reason in prose.EXCEPTIONS.items())
    assert all((root / path).exists() for path in prose.ROOTS)
