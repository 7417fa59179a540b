"""The documents against the tree: code blocks run, and the options, paths and links that they name exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from rgpo import gates
from rgpo.runtime import schema

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "experiments/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
README = (ROOT / "README.md").read_text()
EXAMPLE = ROOT / "docs" / "examples" / "ppo_in_40_lines.py"
GROUPS = "algo|task|gate|gate@ref_gate|gate_combination|advantage|penalty|update|scale|experiment|law|"
GROUPS += "sampler@task.sampler|correction@task.correction"
FOLDERS = {"gate@ref_gate": "gate", "sampler@task.sampler": "sampler", "correction@task.correction": "correction"}


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def test_snippet_is_the_example_and_has_40_lines() -> None:
    code = EXAMPLE.read_text()
    assert code in blocks("python", "docs/python.md")
    assert len(code.splitlines()) <= 40


def test_example_learns() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True, env=environment)
    returns = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(returns) == 40
    assert returns[0] < 50 and returns[-1] > 3 * returns[0]  # a random policy gets about 22


def test_gate_of_ones_own() -> None:
    (code,) = (block for block in blocks("python") if "class Cauchy" in block)
    (node,) = (yaml.safe_load(block) for block in blocks("yaml") if "Cauchy" in block)
    module = ModuleType("my_gates")
    sys.modules["my_gates"] = module  # where dataclasses look up annotations
    try:
        exec(code, module.__dict__)
        gate = getattr(module, node.pop("_target_").removeprefix("my_gates."))(**node)
    finally:
        del sys.modules["my_gates"]
    d = torch.linspace(-2, 2, 9, dtype=torch.float64)
    k = node["sharpness"]
    torch.testing.assert_close(gates.weight(gate, d, torch.ones_like(d)), k / torch.pi / (1 + (k * d) ** 2))


def test_the_readme_is_short_and_its_picture_wide() -> None:
    assert len(README.splitlines()) <= 120
    (picture,) = re.findall(r"!\[.*?\]\((.*?\.png)\)", README)
    width = int.from_bytes((ROOT / picture).read_bytes()[16:20])  # of the PNG's header
    assert width >= 1400
    assert "make run" in README and "make test" in README


def test_an_algorithm_without_axes_names_every_axis() -> None:
    """The yaml of docs/recipes/algorithm.md sets every axis to null."""
    text = (ROOT / "docs" / "recipes" / "algorithm.md").read_text()
    (node,) = (
        yaml.safe_load(found)
        for found in re.findall(r"^```yaml.*?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        if "algorithm:" in found
    )
    groups = {group.removeprefix("override /").rpartition("@")[2] for entry in node["defaults"] for group in entry}
    assert groups == set(schema.AXES)


@pytest.mark.parametrize("page", PAGES)
def test_named_options_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(rf"(?<![\w.@])({GROUPS})=([a-z0-9_][\w,|]*)", text)
    mine = {*re.findall(r"my_conf/(\w+/\w+)\.yaml", text), *(f"experiment/{name}" for name in re.findall(r" name=(\w+)", text))}
    options = {f"{FOLDERS.get(group, group)}/{name}" for group, names in named for name in re.split(r"[,|]", names.rstrip(",|"))}
    assert [option for option in sorted(options - mine) if not (ROOT / "conf" / f"{option}.yaml").is_file()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    links = [(ROOT / page).parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:rgpo|conf|docs|tests|benchmarks|experiments)/[\w/.]+)`", text)]
    modules = [ROOT / (name.replace(".", "/") + ".py") for name in re.findall(r"python -m (rgpo\.[\w.]+)", text)]
    assert [str(path) for path in links + paths if not path.exists()] == []
    assert [str(path) for path in modules if not (path.exists() or path.with_suffix("").is_dir())] == []


def test_layout() -> None:
    (tree,) = (block for block in blocks("", "docs/layout.md") if block.startswith("conf/"))
    entries: list[tuple[str, str]] = []
    for line in tree.splitlines():
        path, _, words = line.partition("  ")
        entries.append((path or entries[-1][0], words))
    packages = {f"rgpo/{folder.parent.name}/" for folder in (ROOT / "rgpo").glob("*/__init__.py")}
    assert packages <= {path for path, _ in entries}
    for path, words in entries:
        assert (ROOT / path).exists(), path
        if path.startswith("rgpo/") and path.endswith("/"):
            for name in re.findall(r"(?<![\w/.])([\w]+(?:\.py|/))", words):
                assert (ROOT / path / name).exists(), f"{path}{name}"
