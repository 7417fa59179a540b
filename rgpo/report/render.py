"""One figure drawn and saved in every format; a plain function, so that another process can do it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

from matplotlib.figure import Figure

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
        figure = module.draw(job.panels, job.lines, first)
        places = style.settle(figure)
        files = style.save(figure, job.name, list(kinds), job.dpi)
        shown = {first: files["svg"]}
        for scale in others:
            _freed(figure)
            figure = module.draw(job.panels, job.lines, scale)
            style.settle(figure, places)
            shown[scale] = style.save(figure, job.name, ["svg"], job.dpi)["svg"]
    _freed(figure)
    return Drawn({kind: files[kind] for kind in job.formats}, shown)


def _freed(figure: Figure) -> None:
    """A figure is a large circle of references; two of them at a time are too many."""
    figure.clear()
    gc.collect()
