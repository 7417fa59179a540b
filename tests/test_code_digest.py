"""The digest changes with what determines numbers, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rgpo.runtime import code_digest as digests
from rgpo.runtime.code_digest import code_digest, room_of, without_comments

CHOICES = {"gate": "clip", "penalty": "none", "update": "sgd", "task": "cartpole", "algo": "ppo"}
CONTROL = "rgpo.control.task.Control"
SOURCE = '"""Doc."""\n\ndef f(x: float) -> float:\n    """Doc."""\n    return x + 1.0  # a comment\n'


def test_comments_docstrings_and_layout_are_left_out() -> None:
    other = "def f(\n    x: float,\n) -> float:\n    return (x + 1.0)\n"
    assert without_comments(SOURCE) == without_comments(other)
    assert without_comments(SOURCE) != without_comments(SOURCE.replace("1.0", "1.1"))
    assert without_comments(SOURCE) != without_comments(SOURCE.replace("x + ", "x - "))


def test_a_task_has_the_digest_of_its_own_package() -> None:
    assert [room_of(target) for target in (CONTROL, "rgpo.language.task.Language", "mine.Task")] == ["control", "language", ""]
    found = {code_digest(CHOICES, target) for target in (CONTROL, "rgpo.language.task.Language", "mine.Task")}
    assert len(found) == 3 and all(len(digest) == 12 for digest in found)
    assert code_digest(CHOICES | {"gate": "mine"}, CONTROL) not in found


@pytest.mark.parametrize(
    ("file", "change", "same"),
    [
        ("core/surrogate.py", "x = 1\n", False),
        ("learning/loss.py", "x = 1\n", False),
        ("control/task.py", "x = 1\n", False),
        ("core/surrogate.py", "# a remark\n", True),
        ("language/task.py", "x = 1\n", True),
        ("report/build.py", "x = 1\n", True),
    ],
)
def test_only_code_that_determines_numbers_counts(
    file: str, change: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small package in the place of rgpo."""
    for name in ("core/surrogate.py", "gates.py", "learning/loss.py", "control/task.py", "language/task.py", "report/build.py"):
        (tmp_path / "rgpo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rgpo" / name).write_text("y = 2\n")
    (tmp_path / "rgpo/runtime").mkdir()
    monkeypatch.setattr(digests, "__file__", str(tmp_path / "rgpo/runtime/code_digest.py"))
    before = fresh()
    path = tmp_path / "rgpo" / file
    path.write_text(path.read_text() + change)
    assert (fresh() == before) is same


@pytest.mark.parametrize(("text", "same"), [("sharpness: 10.0  # of the curve\n", True), ("sharpness: 4.0\n", False)])
def test_values_of_the_chosen_options_count(text: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate/clip.yaml").write_text("sharpness: 10.0\n")
    (tmp_path / "gate/other.yaml").write_text("sharpness: 1.0\n")
    monkeypatch.setattr(digests, "conf_dir", lambda: tmp_path)
    before = fresh()
    (tmp_path / "gate/clip.yaml").write_text(text)
    (tmp_path / "gate/other.yaml").write_text("sharpness: 3.0\n")
    assert (fresh() == before) is same


def fresh() -> str:
    """The digest as a new process finds it."""
    for cached in (digests.digest_of, digests._of_package, digests._of_option):
        cached.cache_clear()
    try:
        return code_digest(CHOICES, CONTROL)
    finally:
        for cached in (digests.digest_of, digests._of_package, digests._of_option):
            cached.cache_clear()


def test_a_remembered_digest_is_the_same_and_a_damaged_one_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path))
    parsed: list[str] = []
    strip = digests.without_comments
    monkeypatch.setattr(digests, "without_comments", lambda text: parsed.append(text) or strip(text))
    first = fresh()
    assert parsed and list((tmp_path / "digests").iterdir())
    parsed.clear()
    assert fresh() == first and not parsed
    for file in (tmp_path / "digests").iterdir():
        file.write_text("0" + file.read_text()[1:] if not file.read_text().startswith("0") else "1" + file.read_text()[1:])
    assert fresh() == first and parsed
