"""python -m experiments.pages: rewrite the numbers and pictures in the documentation, or list those that are stale."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from experiments.pages.numbers import RENDERERS
from experiments.pages.pictures import pictures
from experiments.pages.results import Results

ROOT = Path(__file__).parents[2]
REGION = re.compile(r"(<!-- rendered: ([^>]*?) -->\n).*?(<!-- /rendered -->)", re.DOTALL)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")
TOLERANCE = 0.02  # tolerance for numbers in a picture; text and structure are compared exactly

Renderers = Mapping[str, Callable[..., str]]


def main(words: list[str] | None = None) -> int:
    """Parse the command line and render; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if anything is stale")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder of the runs")
    given = parser.parse_args(words)
    results = Results(given.results)
    stale = [*_texts(results, given.check), *_pictures(results, given.check)]
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'is stale; run python -m experiments.pages' if given.check else 'rewritten'}")
    return int(given.check and bool(stale))


def pages() -> list[Path]:
    """All pages that may have rendered parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def render(text: str, results: Results, renderers: Renderers = RENDERERS) -> str:
    """Render the generated parts of a page again.

    Raises: KeyError if a name is not in renderers.
    """

    def made(match: re.Match[str]) -> str:
        name, *words = match[2].split()
        return f"{match[1]}{renderers[name](results, *words).strip()}\n{match[3]}"

    return REGION.sub(made, text)


def _texts(results: Results, check: bool) -> Iterator[Path]:
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = render(old, results)
        if new != old:
            if not check:
                path.write_text(new, encoding="utf-8")
            yield path


def _pictures(results: Results, check: bool) -> Iterator[Path]:
    for name, made in pictures(results):
        paths = {kind: ROOT / "docs" / "figures" / f"{name}.{kind}" for kind in made}
        if not (all(path.exists() for path in paths.values()) and same_picture(paths["svg"].read_bytes(), made["svg"])):
            for kind, path in paths.items() if not check else ():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(made[kind])
            yield paths["svg"]


def same_picture(one: bytes, other: bytes) -> bool:
    """True if two SVG drawings have the same text, and numbers that differ by at most TOLERANCE."""
    if NUMBER.sub(b"#", one) != NUMBER.sub(b"#", other):
        return False
    left, right = (np.array(NUMBER.findall(content), float) for content in (one, other))
    return bool(np.allclose(left, right, rtol=0, atol=TOLERANCE))


if __name__ == "__main__":
    sys.exit(main())
