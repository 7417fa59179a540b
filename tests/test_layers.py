"""Arrows point down: who may import whom, read from the sources and seen in a fresh interpreter."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "rgpo"
LAYERS = [  # a module imports from its own line and the lines below it only
    ["run"],
    ["launch"],
    ["gates_table"],
    ["config"],
    ["compose"],
    ["runner", "console", "runfolder", "provenance"],
    ["metrics", "exports", "checkpoint", "tasks"],
    ["policies"],
    ["algorithm"],
    ["diagnostics", "updates"],
    ["objective"],
    ["adaptive", "language_advantages", "penalties", "quadrature"],
    ["advantages"],
    ["gates"],
    ["recurrence"],
    ["curve", "divergences", "batch", "sequences"],
    ["climbing", "schema", "signals", "paths", "errors", "machine", "__init__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ONLY = {
    "transformers": {"tasks", "policies"},
    "tokenizers": {"tasks"},
    "peft": {"policies"},
    "huggingface_hub": {"policies"},
    "gymnasium": {"tasks"},
    "mujoco": {"tasks"},
    "hydra": {"run", "launch", "compose"},
    "omegaconf": {"config", "launch", "compose", "gates_table", "report"},
}


def imports(file: Path) -> list[str]:
    """Modules imported at run time anywhere in a file; `if TYPE_CHECKING` does not count."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_arrows_point_down(file: Path) -> None:
    parts = file.relative_to(ROOT).with_suffix("").parts
    for name in imports(file):
        words = name.split(".")
        if words[0] in ONLY:
            assert parts[0] in ONLY[words[0]], f"{file.name} imports {name}"
        if words[0] != "rgpo" or len(words) == 1:
            continue
        if parts[0] == "report":
            assert words[1] in ("report", "schema", "paths", "errors", "__version__"), f"the report imports {name}"
        else:
            below = LEVEL.get(words[1], LEVEL["__init__"])
            assert LEVEL[parts[0]] <= below, f"{file.name} imports {name}, which lies above it"


def test_every_module_has_a_layer() -> None:
    assert {f.relative_to(ROOT).with_suffix("").parts[0] for f in FILES} == {*LEVEL, "report"}


@pytest.mark.parametrize(
    "module",
    [
        *("rgpo.core.gates", "rgpo.cli.config", "rgpo.cli.run", "rgpo.learning.sgd", "rgpo.report.cli"),
        *("rgpo.control.task", "rgpo.language.sources.hub", "rgpo.language.sources.smollm2"),
    ],
)
def test_checking_a_configuration_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
