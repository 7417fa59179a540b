"""index.md: what was run, tables, figures with caption and command, and what was left out."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import rgpo
from rgpo.report.groups import Group
from rgpo.report.load import Problem, Run
from rgpo.report.settings import Settings, command
from rgpo.report.tables import Table

REPORT_PACKAGES = ("numpy", "pyarrow", "matplotlib")


class Made(NamedTuple):
    """A figure on disk: format -> path below `out`."""

    name: str
    paths: dict[str, str]
    caption: str
    command: str


@dataclass
class Section:
    """One experiment's part of the page."""

    title: str
    groups: list[Group]
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Made] = field(default_factory=list)


def index(sections: Sequence[Section], general: Section | None, settings: Settings, defaults: Settings) -> str:
    """The page as markdown."""
    packages = (f"{name} {version(name)}" for name in REPORT_PACKAGES)
    made_with = ", ".join([f"Python {platform.python_version()}", *packages])
    parts = [
        "# rgpo report",
        f"Made from `{settings.results_dir}` by rgpo {rgpo.__version__} ({made_with}):",
        _code(command(settings, defaults)),
    ]
    if len(sections) > 1:
        anchors = ((section.title, section.title.lower().replace(" ", "-")) for section in sections)
        parts.append("\n".join(f"- [{title}](#{anchor})" for title, anchor in anchors))
    for section in sections:
        parts += _experiment(section, settings)
    if general:
        parts += ["## Gates", *(_figure(figure) for figure in general.figures), *_lists(general)]
    return "\n\n".join(parts) + "\n"


def _experiment(section: Section, settings: Settings) -> list[str]:
    parts = [f"## {section.title}", *_lists(section)]
    runs = [run for group in section.groups for run in group.runs]
    if runs:
        parts += ["### Provenance", _provenance(runs)]
    for table in section.tables:
        links = ", ".join(f"[{kind}]({section.title}/tables/{table.name}.{kind})" for kind in ("md", "tex", "csv"))
        text = _linked(table, runs, settings) if table.name == "runs" else table.markdown()
        parts += [f"### {table.name.capitalize()}", text.rstrip(), f"{table.caption} ({links})"]
    if section.figures:
        parts += ["### Figures", *(_figure(figure) for figure in section.figures)]
    return parts


def _lists(section: Section) -> list[str]:
    parts = []
    if section.problems:
        parts.append("### Left out or incomplete\n\n" + "\n".join(f"- {_literal(str(p))}." for p in section.problems))
    if section.notes:
        parts.append("Notes:\n\n" + "\n".join(f"- {note}" for note in section.notes))
    return parts


def _figure(figure: Made) -> str:
    title = figure.name.replace("_", " ").capitalize()
    shown = figure.paths.get("png") or next(iter(figure.paths.values()))
    links = ", ".join(f"[{kind}]({path})" for kind, path in figure.paths.items())
    return f"#### {title}\n\n![{title}]({shown})\n\n{_literal(figure.caption)} ({links})\n\n{_code(figure.command)}"


def _provenance(runs: Sequence[Run]) -> str:
    """Distinct values with the number of runs that have them."""
    commits = Counter(_commit(run) for run in runs)
    versions = Counter(_versions(run) for run in runs)
    hosts = Counter(_host(run) for run in runs)
    commands = Counter(str(run.provenance.get("command", "unknown")) for run in runs)
    started = sorted(str(run.provenance["started"]) for run in runs if run.provenance.get("started"))
    status = Counter(run.status for run in runs)
    resumed = sum(int(run.provenance.get("attempt", 1)) > 1 for run in runs)
    states = ", ".join(f"{n} {name}" for name, n in sorted(status.items()))
    lines = [f"- runs: {len(runs)} ({states}), {resumed} resumed"]
    lines += _counted("commit", commits, "`") + _counted("versions", versions) + _counted("host", hosts)
    lines += [f"- started: {started[0]} to {started[-1]}"] if started else []
    return "\n".join(lines + _counted("command", commands, "`"))


def _counted(name: str, found: Counter[str], quote: str = "") -> list[str]:
    counts = {value: f" ({n} run{'s' if n > 1 else ''})" if len(found) > 1 else "" for value, n in sorted(found.items())}
    shown = [f"{quote}{value}{quote}{count}" for value, count in counts.items()]
    more = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
    return [f"- {name}: {'; '.join(shown[:5])}{more}"]


def _commit(run: Run) -> str:
    commit = run.provenance.get("commit")
    return f"{commit}{' with uncommitted changes' if run.provenance.get('dirty') else ''}" if commit else "unknown"


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {v}" for name, v in run.provenance.get("versions", {}).items()) or "unknown"


def _host(run: Run) -> str:
    host = run.provenance.get("host", {})
    machine = f"{host.get('cpu', 'unknown')}, {host.get('cores', '?')} cores, {host.get('platform', '?')}"
    return f"{machine}; threads a run: {run.provenance.get('num_threads', '?')}"


def _linked(table: Table, runs: Sequence[Run], settings: Settings) -> str:
    """The run table with links to the run folders."""
    text = table.markdown()
    for run in runs:
        path = Path(os.path.relpath(run.folder, settings.out)).as_posix()
        text = text.replace(f"| {run.run_id} |", f"| [{run.run_id}]({path}) |")
    return text


def _code(line: str) -> str:
    return f"```sh\n{line}\n```"


def _literal(text: str) -> str:
    """Plain text that markdown shows as it stands."""
    return text.replace("_", r"\_").replace("|", r"\|").replace("*", r"\*")
