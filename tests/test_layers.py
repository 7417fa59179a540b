"""Arrows point down: imports between and inside packages, at any depth of the code and under TYPE_CHECKING, form no circle."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "rgpo").rglob("*.py"))
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}
LAYERS = [  # a room imports from itself and from the lines below it only
    ["api"],
    ["engines"],
    ["cli"],
    ["runtime"],
    ["bandit", "control", "language"],
    ["learning"],
    ["gates"],
    ["core"],
    ["distributed"],
    ["atomic", "files", "paths"],
    ["errors", "interrupt", "leaving", "version"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ABOVE = {"rgpo", "rgpo.bandit.__main__"}  # the public names of all rooms, and a command that reads conf/ as rgpo-run does
REPORT = {
    "rgpo.atomic",
    "rgpo.errors",
    "rgpo.files",
    "rgpo.interrupt",
    "rgpo.leaving",
    "rgpo.paths",
    *(
        f"rgpo.runtime.{name}"
        for name in (
            "code_digest",
            "former",
            "manifest",
            "own_metrics",
            "parts",
            "provenance",
            "reader",
            "run_folder",
            "schema",
            "task_name",
        )
    ),
    "rgpo.version",
}  # all of ours that the report imports
ONLY = {  # who may import a package of others
    "transformers": {"engines", "language"},
    "tokenizers": {"language"},
    "peft": {"language"},
    "huggingface_hub": {"language"},
    "gymnasium": {"control", "engines"},
    "mujoco": {"control"},
    "hydra": {"cli"},
    "omegaconf": {"cli", "report"},
    "trl": {"engines"},
    "stable_baselines3": {"engines"},
    "verl": {"engines"},
}


def imports(file: Path, top_level: bool = False) -> list[str]:
    """Dotted names that a file imports anywhere in it, or at run time when it is imported itself."""
    tree = ast.parse(file.read_text())
    nodes: list[ast.AST] = list(tree.body) if top_level else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_of(name: str) -> str:
    """The module of ours that a dotted name is in: rgpo.core.gate for rgpo.core.gate.Gate."""
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def ours(module: str) -> set[str]:
    return {module_of(name) for name in imports(MODULES[module]) if name.split(".")[0] == "rgpo"} - {module}


@pytest.mark.parametrize("module", MODULES)
def test_rooms_import_from_below(module: str) -> None:
    if module in ABOVE:
        return
    room = module.split(".")[1]
    for name in imports(MODULES[module]):
        package = name.split(".")[0]
        assert package not in ONLY or room in ONLY[package], f"{module} imports {name}"
    for other in ours(module):
        assert other != "rgpo", f"{module} imports the public names, which import everything"
        theirs = other.split(".")[1]
        if room == "report":
            assert theirs == "report" or other in REPORT, f"{module} imports {other}"
        elif (room, theirs) != ("api", "report"):
            assert theirs == room or LEVEL[room] < LEVEL[theirs], f"{module} imports {other}, which is not below it"


def test_no_circle_of_any_kind() -> None:
    """Neither between modules nor between the packages inside a room."""
    graph = {module: ours(module) - {"rgpo"} for module in MODULES}
    TopologicalSorter(graph).prepare()
    packages: dict[str, set[str]] = {}
    for module, others in graph.items():
        inside = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
        for other in others:
            theirs = other if MODULES[other].name == "__init__.py" else other.rpartition(".")[0]
            related = theirs == inside or theirs.startswith(f"{inside}.") or inside.startswith(f"{theirs}.")
            packages.setdefault(inside, set()).update(() if related else {theirs})
    TopologicalSorter(packages).prepare()


def test_the_walk_sees_what_it_must(tmp_path: Path) -> None:
    """The must-fail side: an import under TYPE_CHECKING and one inside a function are found."""
    file = tmp_path / "module.py"
    file.write_text("if TYPE_CHECKING:\n    from rgpo.cli.run import main\ndef f():\n    import rgpo.core.gate\n")
    assert imports(file) == ["rgpo.cli.run.main", "rgpo.core.gate"] or set(imports(file)) == {
        "rgpo.cli.run.main",
        "rgpo.core.gate",
    }
    assert imports(file, top_level=True) == []
    assert module_of("rgpo.core.gate.Gate") == "rgpo.core.gate"


def test_every_room_has_a_layer() -> None:
    assert {module.split(".")[1] for module in MODULES if module != "rgpo"} == {*LEVEL, "report"}


@pytest.mark.parametrize(
    "module",
    [
        *("rgpo", "rgpo.gates", "rgpo.core.surrogate", "rgpo.cli.config", "rgpo.cli.run", "rgpo.report.cli"),
        *("rgpo.learning.sgd", "rgpo.learning.algorithm", "rgpo.control.task", "rgpo.language.task"),
        *("rgpo.language.sources.hub", "rgpo.language.sources.smollm2"),
    ],
)
def test_checking_a_configuration_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("rgpo.core")])
def test_core_is_pure(module: str) -> None:
    """Nothing heavy at import time, no framework at any time."""
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & {"gymnasium", "transformers", "hydra", "omegaconf"}
    assert "torch" not in {name.split(".")[0] for name in imports(MODULES[module], top_level=True)}


def test_the_way_from_the_command_to_a_gate_is_as_documented() -> None:
    """Each file of the table has the functions beside it, and names the module of the next one."""
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8").partition("## From the command")[2]
    rows = re.findall(r"^\| `(rgpo/[\w/]+\.py)` \| (.+?) \|", text, re.MULTILINE)
    sources = [(ROOT / path).read_text(encoding="utf-8") for path, _ in rows]
    assert len(rows) == 6
    for source, (_, functions) in zip(sources, rows, strict=True):
        assert all(f"def {name}(" in source for name in re.findall(r"`(\w+)`", functions))
    named = ["rgpo.runtime.runner", "session.algorithm.learn", "rgpo.learning.loss", "objective(", "gate"]
    assert all(word in source for source, word in zip(sources, named, strict=False))
