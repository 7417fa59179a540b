"""Drawing a figure and saving it in a format, and as inline SVG for users' own figures."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from matplotlib.figure import Figure

from rgpo.atomic import write_bytes
from rgpo.errors import ConfigError, described
from rgpo.report.figures import style
from rgpo.report.figures.style import Line
from rgpo.report.read.groups import Group
from rgpo.report.settings import FIGURES, Settings
from rgpo.runtime.reader import printable

PARTS = ("COLUMNS", "SCALES", "compute", "draw", "caption")  # required attributes of a figure's module

_HEAD = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'(<svg [^>]*?)\swidth="[^"]*"|(<svg [^>]*?)\sheight="[^"]*"')
_LABELED = re.compile(r'\bid="(seed|mean|band):([^"]*)"')
_ID = re.compile(r'\b(id="|href="#|url\(#)')
_DIGITS = re.compile(r"(>[^<]*<|\d\.\d\d)\d*")  # matches text between tags first, to keep labels such as 0.005
_COLORS = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#e4e4e4": "var(--grid)", "#e0e0e0": "var(--grid)"}


class Drawable(Protocol):
    """A figure that can be drawn from its panels, whose type it defines."""

    SCALES: tuple[str, ...]  # names of possible axes; the first is used

    def draw(self, panels: Any, lines: Mapping[str, Line], scale: str, /) -> Figure: ...


class FigureModule(Drawable, Protocol):
    """A figure computed from an experiment's runs."""

    COLUMNS: tuple[str, ...]  # metrics that it uses

    def compute(self, groups: Sequence[Group], settings: Settings, /) -> Sequence[Any]: ...

    def caption(self, panels: Any, settings: Settings, /) -> str: ...


class Job(NamedTuple):
    """Everything needed to draw a figure."""

    name: str
    place: str  # id on the page, unique among figures
    panels: Sequence[Any]
    lines: Mapping[str, Line]
    folder: Path  # for its file
    format: str | None  # the file's format; None: no file
    kinds: tuple[str, ...]  # formats to draw: the file's, and svg for the page
    width: float  # inches
    font_size: float  # points
    dpi: int


class Failed(NamedTuple):
    """A figure could not be drawn, with the reason."""

    why: str


def load(name: str) -> FigureModule:
    """Import a figure's module: one of the report's, or a user's in the current directory.

    Raises: ConfigError if a user's module cannot be imported or lacks an attribute.
    """
    if name in FIGURES:
        return cast(FigureModule, import_module(f"rgpo.report.figures.{name}"))
    sys.path[:0] = [here] if (here := str(Path.cwd())) not in sys.path else []
    try:
        module = import_module(name)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(f"figures=[{name}]: cannot be imported ({described(error)}).") from error
    lacking = [part for part in PARTS if not hasattr(module, part)]
    if lacking:
        raise ConfigError(f"figures=[{name}]: {module.__file__} lacks {', '.join(lacking)}; see rgpo/report/figures/spikes.py.")
    return cast(FigureModule, module)


def render(job: Job) -> str | Failed:
    """Draw a figure and write its file; returns the <svg> for the page, or "" if svg was not drawn.

    Raises: OSError if the file cannot be written.
    """
    try:
        with style.context(job.width, job.font_size):
            module: Drawable = load(job.name)
            figure = module.draw(job.panels, job.lines, module.SCALES[0])
            style.settle(figure)
            files = style.save(figure, job.name, job.kinds, job.dpi)
    except Exception as error:  # unusual numbers in a run must not break the report
        return Failed(f"cannot be drawn ({type(error).__name__}: {printable(str(error))})")
    del figure
    gc.collect()  # a figure is a large reference cycle
    if job.format:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_bytes(job.folder / f"{job.name}.{job.format}", files[job.format])
    return inline(files["svg"], f"f{job.place}") if "svg" in files else ""


def inline(svg: bytes, prefix: str) -> str:
    """The <svg> element for the page, with ids made unique by `prefix`, and black, white and grid in the page's colors.

    An artist with the id "kind:label" gets class="kind" and data-label="label".
    """
    text = _HEAD.sub("", svg.decode())
    for _ in range(2):  # width, height
        text = _SIZE.sub(lambda match: match[1] or match[2], text, count=1)
    box = re.search(r'viewBox="0 0 ([0-9.]+)', text)
    assert box is not None, "matplotlib writes a viewBox"
    width = float(box[1])
    text = text.replace("<svg ", f'<svg style="max-width:{1.9 * width:.0f}px;min-width:{1.14 * width:.0f}px" ', 1)
    text = _LABELED.sub(r'class="\1" data-label="\2"', text)
    text = _ID.sub(rf"\g<1>{prefix}-", text)
    text = _DIGITS.sub(r"\1", text)  # a precision of 0.01 points is enough
    for color, name in _COLORS.items():
        text = re.sub(color, name, text, flags=re.IGNORECASE)
    return text.strip()
