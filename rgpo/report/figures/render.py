"""One figure drawn and saved in every format; a plain function, so that another process can do it. How files are written."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rgpo.report.figures import style
from rgpo.report.figures.inline import inline
from rgpo.report.figures.style import Line

MOST_PANELS_TWICE = 60  # of a figure that is drawn with a second axis; a hundred of them take ten seconds


class Job(NamedTuple):
    """What is needed to draw a figure."""

    name: str
    place: str  # on the page, like no other figure's
    panels: Sequence[Any]
    lines: Mapping[str, Line]
    folder: Path  # of its files
    formats: Sequence[str]
    dpi: int


def render(job: Job) -> dict[str, str]:
    """Draw a figure with each of its axes and write its files; axis -> <svg> of the page."""
    module = import_module(f"rgpo.report.figures.{job.name}")
    first, *others = module.SCALES if len(job.panels) <= MOST_PANELS_TWICE else module.SCALES[:1]
    kinds = dict.fromkeys(["svg", *job.formats])
    with style.context():
        figure = module.draw(job.panels, job.lines, first)
        places = style.settle(figure)
        files = style.save(figure, job.name, list(kinds), job.dpi)
        shown = {first: inline(files["svg"], f"f{job.place}-1")}
        for i, scale in enumerate(others, start=2):
            del figure
            gc.collect()  # a figure is a large circle of references; two of them at a time are too many
            figure = module.draw(job.panels, job.lines, scale)
            style.settle(figure, places)
            shown[scale] = inline(style.save(figure, job.name, ["svg"], job.dpi)["svg"], f"f{job.place}-{i}")
    del figure
    gc.collect()
    for kind in job.formats:
        write(job.folder / f"{job.name}.{kind}", [files[kind]])
    return shown


def write(path: Path, pieces: Iterable[bytes]) -> None:
    """Replace a file atomically, and make its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("wb") as file:
        file.writelines(pieces)
    aside.replace(path)
