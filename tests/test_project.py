"""The promises to contributors: versions agree, formats are described, dependencies are justified, checks are those of CI."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import rgpo
from rgpo.runtime import checkpoint

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def table(page: str) -> list[list[str]]:
    """The cells of every row of the tables of a page, without heads."""
    rows = re.findall(r"^\|(.*)\|$", (ROOT / page).read_text(), re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]


def test_versions_agree() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == rgpo.__version__
    newest = re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == rgpo.__version__


def test_the_format_of_checkpoints_is_described() -> None:
    formats = [int(row[0]) for row in table("docs/checkpoints.md") if row[0].isdigit()]
    assert formats == list(range(1, checkpoint.FORMAT + 1))
    assert f"format {checkpoint.FORMAT}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_justified() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    named = {re.split(r"[\[<>=]", word)[0] for group in groups for word in group} - {"rgpo"}
    described = {row[0].strip("`"): row for row in table("docs/dependencies.md")}
    assert sorted(named - set(described)) == []
    assert all(all(described[name][:3]) for name in named)  # name, purpose, alternative


@pytest.mark.parametrize("file", sorted(path for path in (ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_workflows_name_files_that_exist(file: Path) -> None:
    assert yaml.safe_load(file.read_text())
    text = file.read_text()
    paths = re.findall(r"(?<![\w/.])((?:tests|docs|rgpo|experiments)/[\w/]+\.(?:py|md|txt))", text)
    modules = re.findall(r"python -m ((?:rgpo|experiments)[\w.]*)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [name for name in modules if not (ROOT / name.replace(".", "/")).is_dir()] == []


def test_the_checks_before_a_commit_are_those_of_make_check() -> None:
    made = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    names = {re.sub(r" --force-exclude$", "", hook["entry"]) for hook in hooks}
    assert names == {re.sub(r" (?:\.|--check \.)$", "", line) for line in re.findall(r"\$\(BIN\)/(.*)", made)}
