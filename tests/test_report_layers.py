"""Arrows inside rgpo.report point down, from room to room and from module to module, under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from importlib.resources import files
from pathlib import Path

import pytest
from test_layers import REPORT as OURS

from rgpo.report.figures.render import load
from rgpo.report.page.completions import Sample
from rgpo.report.page.index import SCRIPTS, STYLES
from rgpo.report.read import columns
from rgpo.report.settings import FIGURES, WITHOUT_RUNS
from rgpo.runtime.schema import GLOSSARY, SAMPLES

ROOT = Path(__file__).parents[1]
ORDER = [["settings"], ["stats"], ["read"], ["tables"], ["figures", "claims"], ["page"], ["section"], ["build"], ["cli"]]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "rgpo/report").rglob("*.py"))
}


def imports(file: Path) -> set[str]:
    """Modules of ours that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES or name in OURS else node.module for name in names}
    return {name for name in found if name.partition(".")[0] == "rgpo"}


def room(module: str) -> str:
    """settings, stats, read ... of rgpo.report.<room>."""
    return module.removeprefix("rgpo.report").lstrip(".").partition(".")[0]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "rgpo.report"])
def test_rooms_import_only_from_those_below(module: str) -> None:
    for name in imports(MODULES[module]):
        if name.startswith("rgpo.report."):
            same = room(name) == room(module)
            assert same or LEVEL[room(name)] < LEVEL[room(module)], f"{module} imports {name}"
        else:
            assert name in OURS or (name == "rgpo" and room(module) in ("page", "cli")), f"{module} imports {name}"


def test_no_circle_between_modules() -> None:
    TopologicalSorter({name: imports(file) - {name} for name, file in MODULES.items()}).prepare()


def test_every_room_has_a_level() -> None:
    assert {room(name) for name in MODULES if name != "rgpo.report"} == set(LEVEL)


def test_settings_read_neither_numpy_nor_matplotlib() -> None:
    tree = ast.parse(MODULES["rgpo.report.settings"].read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "dataclasses", "pathlib", "rgpo.errors"}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_module_with_axes(name: str) -> None:
    module = load(name)
    assert module.SCALES and callable(module.draw) and callable(module.caption)
    if name not in WITHOUT_RUNS:
        assert set(module.COLUMNS) <= set(GLOSSARY) and callable(module.compute)


def test_every_column_that_is_read_is_one_that_runs_write() -> None:
    assert set(GLOSSARY) >= columns.COLUMNS and set(Sample._fields) - {"terms"} <= set(SAMPLES)


def test_the_template_is_part_of_the_package() -> None:
    template = files("rgpo.report.page") / "template"
    assert {"index.html", *SCRIPTS, *STYLES} == {
        str(file.relative_to(str(template)))
        for file in Path(str(template)).rglob("*")
        if file.is_file() and file.name != "LICENSE"
    }
    assert "MIT" in (template / "uplot" / "LICENSE").read_text()
