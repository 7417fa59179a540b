"""The documentation: rendered parts are fresh, examples give what they show, the site builds strictly and needs no network."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.pages import __main__ as pages
from rgpo.cli.config_dir import group_options

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))


def test_rendered_numbers_and_pictures_are_those_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_number_and_a_moved_point_are_noticed() -> None:
    text = "<!-- rendered: count a b -->\nold\n<!-- /rendered -->\nrest\n"
    made = pages.render(text, None, {"count": lambda results, *words: f"{len(words)} words"})
    assert made == "<!-- rendered: count a b -->\n2 words\n<!-- /rendered -->\nrest\n"
    with pytest.raises(KeyError):
        pages.render(text, None, {})
    drawing = b'<path d="M 1.001 2"/><text>r</text>'
    assert pages.same_picture(drawing, drawing.replace(b"1.001", b"1.002"))
    assert not pages.same_picture(drawing, drawing.replace(b"1.001", b"1.2"))
    assert not pages.same_picture(drawing, drawing.replace(b">r<", b">d<"))


@pytest.mark.parametrize("page", [path for path in DOCS if ">>> " in path.read_text()], ids=lambda path: path.stem)
def test_examples_give_what_they_show(page: Path) -> None:
    assert doctest.testfile(str(page), module_relative=False).failed == 0


def test_every_algorithm_has_a_page_with_its_parts() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    for algo in group_options("algo"):
        text = (ROOT / "docs" / "algorithms" / f"{algo}.md").read_text()
        assert f"algorithms/{algo}.md" in nav
        assert f'"conf/algo/{algo}.yaml"' in text and f"<!-- rendered: results {algo} -->" in text
        assert f"rgpo-run algo={algo} " in text and "## Equations" in text and "## What differs from the literature" in text


LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]+)\"")


def test_the_site_builds_without_warnings_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) > len(DOCS)
    for page in built:
        assert LOADED.findall(page.read_text()) == [], page.name
    for sheet in tmp_path.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text()) == [], sheet.name
