"""index.html: one self-contained page of runs, results and problems, which makes no network requests."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from rgpo.report.figures.looks import Line
from rgpo.report.page.answer import Answer
from rgpo.report.page.completions import Pair
from rgpo.report.page.data import link, packed
from rgpo.report.page.films import Film
from rgpo.report.read.groups import Group
from rgpo.report.read.run import Problem, Run
from rgpo.report.settings import Settings, command
from rgpo.report.tables.advice import Advice
from rgpo.report.tables.table import Row, Table

TEMPLATE = Path(__file__).parent / "template"
REPORT_PACKAGES = ("numpy", "scipy", "pyarrow", "matplotlib")
TITLES = {
    "arm_gates": "Gates of the arms",
    "frontier": "Reward against KL to the reference",
    "profiles": "Performance profiles",
    "improvement": "Probability of improvement",
    "kl": "KL per update",
    "speed": "Speed against other implementations",
    "settings_frontier": "Results against KL over settings",
    "spikes": "KL spikes by threshold",
    "weight": "Weights",
}
SCRIPTS = ("uplot/uPlot.iife.min.js", "data.js", "chart.js", "shapes.js", "explore.js", "sweep.js", "page.js")
STYLES = ("uplot/uPlot.min.css", "style.css")


class PageFigure(NamedTuple):
    """A figure on the page: metrics drawn by the script from the runs, panels computed here, or a user's own SVG."""

    name: str
    paths: dict[str, str]  # format -> path below `out`
    caption: str
    command: str
    metrics: tuple[str, ...] = ()
    panels: list[dict[str, object]] | None = None
    svg: str = ""

    @property
    def title(self) -> str:
        if self.name.startswith("claim_"):
            claim, _, part = self.name.removeprefix("claim_").partition("_")
            return f"Claim {claim}{': ' if part else ''}{part.replace('_', ' ')}"
        return TITLES.get(self.name, self.name.replace("_", " ").capitalize())

    @property
    def data(self) -> dict[str, object]:
        """The figure's data for the page's script."""
        return {"name": self.name, "title": self.title, "metrics": self.metrics, "panels": self.panels or []}


@dataclass
class Section:
    """One experiment's part of the page; the section without a title covers all experiments."""

    title: str
    groups: list[Group]
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[PageFigure] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    lines: dict[str, Line] = field(default_factory=dict)
    data: dict[str, object] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The folder of its files inside `out`."""
        return f"{self.title}/" if self.title else ""

    @property
    def runs(self) -> list[Run]:
        """All readable runs."""
        return [run for group in self.groups for run in group.runs]


def render_page(
    sections: Sequence[Section],
    general: Section,
    answer: Answer | None,
    advice: Advice | None,
    settings: Settings,
    defaults: Settings,
    live: bool = False,
) -> Iterator[str]:
    """Yield the page in pieces. Only its own script, identified by a hash, may run; everything else is treated as text."""
    from rgpo.version import __version__

    parts = "\n".join((TEMPLATE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f"(async () => {{\n{parts}\n}})();"  # async, since the data must be decompressed first
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"quote": lambda text: quote(os.fsencode(text)), "value": _sort_key}  # names may not be UTF-8
    packages = ", ".join(f"{name} {version(name)}" for name in REPORT_PACKAGES)
    data = {
        "sections": [section.data | {"figures": [figure.data for figure in section.figures]} for section in sections],
        "general": {"lines": {}, "figures": [figure.data for figure in general.figures]},
        "live": live,
        "watch": settings.watch_every_s if settings.watch and not live else 0,  # seconds
    }
    connect = "; connect-src 'self'" if live else ""
    long_rows: list[str] = []  # filled while the page is rendered; the page ends with them

    def later(rows: str) -> int:
        long_rows.append(rows)
        return len(long_rows) - 1

    return environment.get_template("index.html").generate(
        sections=sections,
        general=general,
        answer=answer,
        advice=advice,
        problems=[(section, problem) for section in [general, *sections] for problem in section.problems],
        style=Markup("\n".join((TEMPLATE / name).read_text(encoding="utf-8") for name in STYLES)),  # noqa: S704  # our files
        script=Markup(script),  # noqa: S704  # files of the package
        data=packed(data),
        packed=packed,
        long_rows=long_rows,
        later=later,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
        f"{connect}{_media(sections)}",
        made_with=f"rgpo {__version__}, Python {platform.python_version()}, {packages}",
        command=command(settings, defaults),
        results_dir=settings.results_dir,
        provenance=provenance,
        link=lambda run, name: link(run.folder / name, settings.out),
        run_of={(section.title, run.run_id): run for section in sections for run in section.runs},
    )


def _media(sections: Sequence[Section]) -> str:
    """The clause of the page's content security policy that allows embedded films; "" if there are none."""
    embedded = any(film.data for section in sections for film in section.films)
    return "; img-src data:; media-src data:" if embedded else ""


def provenance(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Distinct values of each provenance field, with the number of runs that have them."""
    status = Counter(run.status for run in runs)
    resumed = sum(run.provenance.attempt > 1 for run in runs)
    inexact = sum(not run.exact for run in runs)
    clause = f" ({inexact} of them not bit for bit: open episodes began anew)" if inexact else ""
    states = ", ".join(f"{n} {name}" for name, n in sorted(status.items()))
    started = sorted(run.provenance.started for run in runs if run.provenance.started)
    return [
        ("runs", [f"{len(runs)} ({states}), {resumed} resumed{clause}"]),
        ("scale", _counted(run.scale for run in runs)),
        ("commit", _counted(map(_commit, runs))),
        ("code that determines numbers", _counted(map(_code, runs))),
        ("versions", _counted(run.provenance.versions for run in runs)),
        ("host", _counted(run.provenance.host for run in runs)),
        ("started", [f"{started[0]} to {started[-1]}"] if started else ["unknown"]),
        ("command", _counted(run.provenance.command or "unknown" for run in runs)),
    ]


def _counted(values: Iterable[str]) -> list[str]:
    found = Counter(values)
    shown = [f"{value} ({n} run{'s' if n > 1 else ''})" if len(found) > 1 else value for value, n in sorted(found.items())]
    return shown[:5] + ([f"and {len(shown) - 5} more"] if len(shown) > 5 else [])


def _code(run: Run) -> str:
    """A run's code version, and whether the code that determines numbers has changed since."""
    return f"{run.version}, {'unchanged' if run.is_current else 'changed since'}"


def _commit(run: Run) -> str:
    commit, dirty = run.provenance.commit, run.provenance.dirty
    return f"{commit}{' with uncommitted changes' if dirty else ''}" if commit else "unknown"


def _sort_key(row: Row, key: str) -> str:
    """The value by which the page sorts a cell."""
    value = row.get(key, "")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
