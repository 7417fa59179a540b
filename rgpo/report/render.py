"""One figure drawn and saved in every format; a plain function, so that another process can do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from rgpo.report import style
from rgpo.report.style import Line


class Job(NamedTuple):
    """What is needed to draw a figure."""

    name: str
    panels: Sequence[Any]
    lines: Mapping[str, Line]
    formats: Sequence[str]
    dpi: int


class Drawn(NamedTuple):
    """format -> bytes of the file, and axis -> SVG for the page."""

    files: dict[str, bytes]
    shown: dict[str, bytes]


def render(job: Job) -> Drawn:
    """Draw a figure with each of its axes."""
    module = import_module(f"rgpo.report.figures.{job.name}")
    first, *others = module.SCALES
    kinds = dict.fromkeys(["svg", *job.formats])
    with style.context():
        files = style.save(module.draw(job.panels, job.lines, first), job.name, list(kinds), job.dpi)
        shown = {first: files["svg"]}
        for scale in others:
            shown[scale] = style.save(module.draw(job.panels, job.lines, scale), job.name, ["svg"], job.dpi)["svg"]
    return Drawn({kind: files[kind] for kind in job.formats}, shown)
