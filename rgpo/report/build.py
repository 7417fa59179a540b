"""From results to report: read the runs, compute, draw, write. Every file is replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from rgpo.errors import ConfigError
from rgpo.report import page, style
from rgpo.report.groups import Group, group_runs
from rgpo.report.load import Problem, Unreadable, experiments, read_runs
from rgpo.report.page import Made, Section
from rgpo.report.settings import Settings, command
from rgpo.report.style import Line
from rgpo.report.summary import COLUMNS as SUMMARY_COLUMNS
from rgpo.report.summary import baseline_problems, check_baseline, missing_metrics, run_table, summary
from rgpo.report.tables import Table


class Outcome(NamedTuple):
    """What the command line says."""

    summary: str
    problems: list[Problem]


@dataclass
class _Loaded:
    name: str
    groups: list[Group]
    problems: list[Problem]


def build(settings: Settings, defaults: Settings) -> Outcome:
    """Write the report. ConfigError without results, experiment or baseline of that name, or a writable `out`."""
    results_dir, out = Path(settings.results_dir), Path(settings.out)
    wanted = [name for name in settings.wanted_figures if name != "gates"]
    modules = {name: import_module(f"rgpo.report.figures.{name}") for name in wanted}
    columns = {*SUMMARY_COLUMNS, *(column for module in modules.values() for column in module.COLUMNS)}
    loaded = [_load(results_dir / name, columns) for name in experiments(results_dir, settings.experiment)]
    everything = [group for experiment in loaded for group in experiment.groups]
    check_baseline(everything, settings)
    base = style.algorithm_lines(group.algo for group in everything)
    try:
        out.mkdir(parents=True, exist_ok=True)
        sections = [_section(e, modules, base, settings, defaults) for e in loaded]
        general = _gates(results_dir, settings, defaults) if "gates" in settings.wanted_figures else None
        problems = [problem for section in sections for problem in section.problems]
        if general:
            problems += general.problems
        text = page.index(sections, general, settings, defaults)
        _write(out / "index.md", text.encode())
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); give a folder that can") from error
    num_runs = sum(len(group.runs) for group in everything)
    num_figures = sum(len(section.figures) for section in [*sections, *([general] if general else [])])
    left_out = f", {len(problems)} left out or incomplete (see above)" if problems else ""
    return Outcome(f"{out / 'index.md'}: {num_runs} runs, {num_figures} figures{left_out}", problems)


def _load(folder: Path, columns: set[str]) -> _Loaded:
    runs, problems = read_runs(folder, columns)
    groups, more = group_runs(runs)
    return _Loaded(folder.name, groups, problems + more + missing_metrics(groups))


def _section(
    loaded: _Loaded, modules: Mapping[str, Any], base: Mapping[str, Line], settings: Settings, defaults: Settings
) -> Section:
    """Tables and figures of one experiment, written to out/<experiment>/."""
    section = Section(loaded.name, loaded.groups, list(loaded.problems))
    if not loaded.groups:
        return section
    incomparable = baseline_problems(loaded.groups, settings)
    if settings.baseline:
        section.problems += incomparable
    else:
        section.notes += [f"{problem}." for problem in incomparable]
    lines = style.assign([(group.algo, group.label) for group in loaded.groups], base)
    folder = Path(settings.out) / loaded.name
    for table in (summary(loaded.groups, settings), run_table(loaded.groups, settings)):
        _write_table(table, folder / "tables")
        section.tables.append(table)
    for name, module in modules.items():
        panels = module.compute(loaded.groups, settings)
        where = f"{loaded.name}/figures/{name}"
        if not panels:
            _leave_out(section, settings, where, f"no run measured {' or '.join(module.COLUMNS)}")
            continue
        section.problems += _lacking(loaded.groups, panels, module.COLUMNS, where)
        line = command(settings, defaults, experiment=loaded.name, figures=[name])
        text = module.caption(panels, settings) + _absent(loaded.groups, panels)
        with style.context():
            files = style.save(module.draw(panels, lines), name, settings.formats, settings.dpi)
        _write_figure(section, name, folder / "figures", files, text, line, settings)
    return section


def _gates(results_dir: Path, settings: Settings, defaults: Settings) -> Section:
    """The figure of the gates, which no experiment's runs enter, in out/figures/."""
    from rgpo.report.figures import gates

    section = Section("Gates", [], [])
    try:
        curves = gates.compute(results_dir)
    except Unreadable as error:
        _leave_out(section, settings, "figures/gates", str(error))
        return section
    with style.context():
        files = style.save(gates.draw(curves), "gates", settings.formats, settings.dpi)
    line = command(settings, defaults, figures=["gates"])
    _write_figure(section, "gates", Path(settings.out) / "figures", files, gates.caption(curves), line, settings)
    return section


def _leave_out(section: Section, settings: Settings, where: str, why: str) -> None:
    """A figure without data is a problem if it was asked for by name, else a note."""
    if settings.figures is None:
        section.notes.append(f"{where}: {why}.")
    else:
        section.problems.append(Problem(where, f"{why}; the figure is left out"))


def _lacking(groups: Sequence[Group], panels: Sequence[Any], columns: Sequence[str], where: str) -> list[Problem]:
    """Runs that lack a figure's metric although others of their group have it."""
    drawn = {(panel.task, curve.label) for panel in panels for curve in panel.series}
    problems = []
    for group in groups:
        if (group.task, group.label) in drawn:
            for column in columns:
                have = [run for run in group.used if run.has(column)]
                lacking = [run.run_id for run in group.used if run not in have]
                if have and lacking:
                    problems.append(Problem(where, f"{column} was never measured in {', '.join(lacking)}"))
    return problems


def _absent(groups: Sequence[Group], panels: Sequence[Any]) -> str:
    """A sentence about the groups that a figure does not show."""
    drawn = {(panel.task, curve.label) for panel in panels for curve in panel.series}
    absent = sorted({f"{g.label} ({g.task})" for g in groups if (g.task, g.label) not in drawn})
    return f" Not measured: {', '.join(absent)}." if absent else ""


def _write_figure(
    section: Section, name: str, folder: Path, files: Mapping[str, bytes], caption: str, line: str, settings: Settings
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, data in files.items():
        _write(folder / f"{name}.{kind}", data)
    paths = {kind: (folder / f"{name}.{kind}").relative_to(settings.out).as_posix() for kind in files}
    section.figures.append(Made(name, paths, caption, line))


def _write_table(table: Table, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in (("md", table.markdown()), ("tex", table.tex()), ("csv", table.csv())):
        _write(folder / f"{table.name}.{kind}", text.encode())


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.writing")
    aside.write_bytes(data)
    aside.replace(path)
