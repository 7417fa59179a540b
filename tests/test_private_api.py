"""Every use of another package's private API is listed in docs/private_api.md with its file, and every row is still in use."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rgpo").rglob("*.py"))
ROWS = [row.split("|")[1:3] for row in (ROOT / "docs" / "private_api.md").read_text().splitlines() if row.startswith("| `")]
WORD = re.compile(r"(?<![a-zA-Z0-9_])_[a-z]\w*")
MODULE = re.compile(r"(gymnasium|hydra|mujoco|peft|torch|transformers)(\.\w+)+")
PUBLIC = {
    "_replace",
    "_asdict",
    "_fields",
    "_make",
    "_target_",
    "_typeshed",
}  # documented: of named tuples, hydra and type checkers


def defined(source: str) -> set[str]:
    """Private names that a file gives to functions, classes, variables and attributes."""
    nodes = list(ast.walk(ast.parse(source)))
    found = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    found |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return found | {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}


def private_words(source: str, own: set[str]) -> set[str]:
    """Private names that a file reads from elsewhere: in imports, in names of modules to import, and as attributes."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("rgpo", "__future__")):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            names.add(node.value)
        elif isinstance(node, ast.Attribute) and node.attr not in own:
            names.add(f"x.{node.attr}")
    return {word for name in names for word in WORD.findall(name)} - PUBLIC


OWN = set().union(*(defined(file.read_text()) for file in FILES))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_private_api_is_listed(file: Path) -> None:
    listed = [used for used, place in ROWS if file.is_relative_to(ROOT / place.strip(" `"))]
    assert {word for word in private_words(file.read_text(), OWN) if not any(word in used for used in listed)} == set()


@pytest.mark.parametrize(("used", "place"), ROWS)
def test_every_row_is_in_use(used: str, place: str) -> None:
    path = ROOT / place.strip(" `")
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    words = WORD.findall(used)
    assert words and {word for word in words if any(word in file.read_text() for file in files)} == set(words)


def test_the_check_finds_what_it_should() -> None:
    assert len(ROWS) >= 8
    found = {
        "from hydra._internal.callbacks import Callbacks": {"_internal"},
        "import torch\nx = torch._inductor.list_options()": {"_inductor"},
        "y = model.config._attn_implementation": {"_attn_implementation"},
        "load('torch._higher_order_ops.scan')": {"_higher_order_ops"},
        "from rgpo.x import _y\nself._a = other._b\nsample._replace(a=1)._asdict()": set(),
    }
    for source, words in found.items():
        assert private_words(source, own={"_a", "_b"}) == words
