"""Types at the joints: what task, policy, algorithm, update and runner pass to one another is never just Any."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rgpo"
JOINTS = [
    *sorted(PACKAGE.glob("learning/*.py")),
    *(PACKAGE / "core" / f"{name}.py" for name in ("advantages", "gate", "kl_penalty", "surrogate")),
    *(PACKAGE / "control" / f"{name}.py" for name in ("a2c", "actor_critic", "module_policy", "policy", "task")),
    *(PACKAGE / "language" / f"{name}.py" for name in ("dpo", "task", "policy/language_model", "policy/token_batch")),
    *(PACKAGE / "runtime" / f"{name}.py" for name in ("checkpoint", "recorder", "runner", "session")),
]
MOST = 120  # lines of the package that name Any


def loose(text: str) -> Iterator[str]:
    """Functions whose parameters or result, and classes and modules whose attributes, have Any in their annotations."""
    for node in ast.walk(ast.parse(text)):
        hints: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            extra = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
            hints = [node.returns, *(a.annotation for a in [*given.posonlyargs, *given.args, *given.kwonlyargs, *extra])]
        elif isinstance(node, ast.AnnAssign):
            hints = [node.annotation]
        names = (part for hint in hints if hint is not None for part in ast.walk(hint))
        if any(isinstance(part, ast.Name) and part.id == "Any" for part in names):
            yield node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ast.unparse(node)


@pytest.mark.parametrize("file", JOINTS, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_joint_is_loose(file: Path) -> None:
    assert list(loose(file.read_text())) == []


def test_the_walk_sees_what_it_must() -> None:
    """The must-fail side: Any inside a generic, of a keyword, of a result and of an attribute is found."""
    text = "def f(x: dict[str, Any]): ...\ndef g(*, y: Any): ...\ndef h() -> Any: ...\n"
    text += "class A:\n    b: list[Any]\ndef k(x: int): ...\n"
    assert sorted(loose(text)) == ["b: list[Any]", "f", "g", "h"]


def test_any_is_rare() -> None:
    lines = [line for file in PACKAGE.rglob("*.py") for line in file.read_text().splitlines()]
    assert sum(re.search(r"\bAny\b", line) is not None for line in lines) < MOST
