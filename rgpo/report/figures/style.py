"""The style shared by all figures: text width of a page, 8 pt."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from rgpo.report.figures.looks import DASHDOT as DASHDOT
from rgpo.report.figures.looks import DASHED as DASHED
from rgpo.report.figures.looks import DOTTED as DOTTED
from rgpo.report.figures.looks import KNOWN as KNOWN
from rgpo.report.figures.looks import SOLID as SOLID
from rgpo.report.figures.looks import Line as Line
from rgpo.report.figures.looks import algorithm_lines as algorithm_lines
from rgpo.report.figures.looks import assign as assign

CANVASES: dict[str, type[FigureCanvasBase]] = {"svg": FigureCanvasSVG, "png": FigureCanvasAgg, "pdf": FigureCanvasPdf}
WIDTH, NARROW = 7.0, 5.0  # inches: a page's text width, and the least width for side-by-side panels
FONT_SIZE = 8.0  # points
BLACK, ORANGE, SKY, GREEN, VERMILLION, BLUE, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#0072B2",
    "#CC79A7",
)
GRAY = "#7F7F7F"
MANY_PANELS = 12

RC: dict[str, object] = {
    "font.size": 8,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "Helvetica"],
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,  # fixed, since there are no ticks above; measuring them would take a tenth of the time
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "ytick.minor.width": 0.4,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.6,
    "lines.markeredgewidth": 0.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "rgpo",
    "pdf.fonttype": 42,
    "text.usetex": False,
    "path.simplify": True,
}


def context(width: float = WIDTH, font_size: float = FONT_SIZE) -> AbstractContextManager[None]:
    """Apply the style while building and saving a figure; width in inches, font size in points."""
    settings: dict[Any, Any] = {**mpl.rcParamsDefault, **RC}  # ignores the user's matplotlibrc
    settings |= {
        key: value * font_size / FONT_SIZE for key, value in RC.items() if key.endswith("size") and isinstance(value, int | float)
    }
    settings["figure.figsize"] = (width, width / 2)
    return mpl.rc_context({key: value for key, value in settings.items() if not key.startswith("backend")})


def grid(num_panels: int, *, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with num_panels axes in rows of up to `columns`, each `height` inches high."""
    page = float(mpl.rcParams["figure.figsize"][0])
    columns = min(columns if page >= NARROW else max(1, columns // 2), max(num_panels, 1))
    rows = math.ceil(num_panels / columns)
    width = page if columns > 1 or page < NARROW else 0.66 * page
    figure = Figure(figsize=(width, rows * height + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    flat = list(axes.flat)
    for unused in flat[num_panels:]:
        unused.remove()
    for axes in flat[:num_panels] if columns > 2 else ():
        axes.locator_params(nbins=8 - columns)  # fewer ticks in narrow panels
    return figure, flat[:num_panels]


def legend_below(figure: Figure, lines: Mapping[str, Line], extra: Sequence[Artist] = ()) -> None:
    """Add one legend for all panels, below them."""
    handles: list[Artist] = [
        Line2D([], [], color=line.color, linestyle=line.dashes, marker=line.marker, label=label) for label, line in lines.items()
    ]
    handles += extra
    if handles:
        columns = _columns_that_fit([str(h.get_label()) for h in handles], 72 * figure.get_size_inches()[0])
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4, handletextpad=0.5)


def _columns_that_fit(words: Sequence[str], width: float) -> int:
    """The most legend columns with an estimated total width (points) below `width`; entries are filled column by column."""
    for columns in range(len(words), 1, -1):
        sizes = [len(words[i::columns]) for i in range(columns)]
        starts = [sum(sizes[:i]) for i in range(columns)]
        longest = (max(map(len, words[start : start + size])) for start, size in zip(starts, sizes, strict=True))
        if sum(4.2 * length + 39 for length in longest) < width:
            return math.ceil(len(words) / math.ceil(len(words) / columns))  # makes the rows about equally long
    return 1


def log_scale(axes: Axes, *names: str) -> None:
    """Make axes "x" or "y" logarithmic; no minor ticks in figures with many panels, where they would take most of the time."""
    figure = axes.get_figure(root=True)
    for name in names:
        getattr(axes, f"set_{name}scale")("log", nonpositive="mask")
        if figure is not None and len(figure.axes) > MANY_PANELS:
            getattr(axes, f"{name}axis").set_minor_locator(NullLocator())


def log_axis(axes: Axes, name: str = "y") -> None:
    """Make axis "x" or "y" logarithmic after plotting, with ticks at decades, or plain numbers if it spans fewer than two."""
    log_scale(axes, name)
    low, high = axes.get_xlim() if name == "x" else axes.get_ylim()
    if high < 100 * low:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def update_axis(axes: Axes) -> None:
    """Use integer ticks from 0 on the x axis."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def count_axis(axes: Axes) -> None:
    """Use ticks such as 100k, 200k, 1M from 0 on the x axis."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def settle(figure: Figure) -> None:
    """Compute the layout once for all formats.

    Names and values from results may contain $, so mathtext is disabled for all text except tick labels, which do not exist yet.
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text():
            text.set_parse_math(False)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")


def save(figure: Figure, stem: str, formats: Sequence[str], dpi: int) -> dict[str, bytes]:
    """Format -> bytes of a settled figure, reproducible with the same package versions."""
    metadata: dict[str, dict[str, str | None]] = {
        "svg": {"Date": None, "Title": stem},
        "pdf": {"CreationDate": None, "Title": stem},
        "png": {"Title": stem},
    }
    made = {}
    for kind in formats:  # not savefig, which would draw everything twice
        buffer = io.BytesIO()
        figure.set_dpi(dpi)  # svg and pdf change it
        getattr(CANVASES[kind](figure), f"print_{kind}")(buffer, metadata=metadata[kind])
        made[kind] = buffer.getvalue()
    return made
