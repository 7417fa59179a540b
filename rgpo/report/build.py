"""The whole report: read the runs, compute, draw, write. Every file is replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rgpo.atomic import remove_temporary, replacing, write_bytes
from rgpo.errors import ConfigError, close_matches
from rgpo.paths import claims_dir
from rgpo.report.claims.claim import Loaded, read_claims
from rgpo.report.claims.external import read_external
from rgpo.report.claims.ledger import Evidence, around, ledger, renew
from rgpo.report.claims.published import published_table
from rgpo.report.claims.theory import read_theory
from rgpo.report.figures import gates, speed, style
from rgpo.report.figures.render import FigureModule, Job, load, render
from rgpo.report.figures.style import Line
from rgpo.report.page import completions, films
from rgpo.report.page.index import PageFigure, Section, render_page
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import experiments, queued, read_runs, run_folders
from rgpo.report.read.run import Problem, Run
from rgpo.report.read.workers import Map, workers
from rgpo.report.settings import NEED_BASELINE, WITHOUT_RUNS, Settings, command
from rgpo.report.tables import bench, summary
from rgpo.report.tables.baseline import baseline_problems, comparisons
from rgpo.report.tables.matched import matched_table
from rgpo.report.tables.overall import overall
from rgpo.report.tables.table import Table
from rgpo.runtime.reader import Unreadable, printable

Made = TypeVar("Made")
LANGUAGE = {"rewards": summary.rewards, "reward_terms": summary.reward_terms, "matched_kl": matched_table}


@dataclass
class _Loaded:
    name: str
    runs: list[Run]
    groups: list[Group]
    problems: list[Problem]
    num_queued: int = 0  # runs that a sweep has not started yet


def build(settings: Settings, defaults: Settings) -> tuple[str, list[Problem]]:
    """Write the report; a summary in one line, and the problems.

    Raises: ConfigError if there are no results, no experiment of that name, or `out` cannot be written.
    """
    if settings.ledger and settings.experiment:
        raise ConfigError(f"ledger={settings.ledger}: it covers all experiments; leave out experiment={settings.experiment}")
    if settings.ledger:
        around(Path(settings.ledger))
    results_dir, out = Path(settings.results_dir), Path(settings.out)
    folders = [results_dir / name for name in experiments(results_dir, settings.experiment)]
    anchors, damaged = read_external(results_dir)
    place = Path(settings.claims or claims_dir() / "rgpo")
    claims, more = read_claims(place, [folder.name for folder in folders], anchors)
    modules = {name: load(name) for name in settings.wanted_figures if name not in WITHOUT_RUNS}
    columns = {column for module in modules.values() for column in module.COLUMNS}
    columns |= {column for claim in claims for column in claim.columns}
    num_folders = sum(sum(1 for _ in folder.iterdir()) for folder in folders if os.access(folder, os.R_OK))
    with workers(num_folders) as distribute:
        loaded = [_load(folder, columns, claims, settings, distribute) for folder in folders]
    everything = [group for experiment in loaded for group in experiment.groups]
    theory, lost = read_theory(results_dir)
    judged, unjudged = ledger(claims, Evidence([run for e in loaded for run in e.runs], theory, anchors, settings.confidence))
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_temporary(out)
        base = style.algorithm_lines(group.algo for group in everything)
        with workers(num_folders) as distribute:  # new processes, so that the memory of reading is free
            sections = [_section(i, e, modules, base, settings, defaults, distribute) for i, e in enumerate(loaded, start=1)]
        general = Section("", [], _baseline_unknown(everything, settings) + damaged + more + lost + unjudged)
        general.tables += filter(None, [published_table(anchors, everything, settings.confidence)])
        general.tables += [] if settings.experiment else judged  # it covers all experiments
        _speed(general, results_dir, settings, defaults)
        if "gates" in settings.wanted_figures:
            _gates(general, results_dir, settings, defaults)
        for table in general.tables:
            _write_table(table, out / "tables")
        with replacing(out / "index.html") as aside, aside.open("w", encoding="utf-8", errors="backslashreplace") as page:
            page.writelines(render_page(sections, general, settings, defaults))
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); give a folder that can") from error
    if settings.ledger:
        renew(Path(settings.ledger), judged)
    problems = [problem for section in [*sections, general] for problem in section.problems]
    num_runs = sum(len(group.runs) for group in everything)
    num_figures = sum(len(section.figures) for section in [*sections, general])
    num_queued = sum(experiment.num_queued for experiment in loaded)
    waiting = f", {num_queued} queued" if num_queued else ""
    left_out = f", {len(problems)} left out or incomplete (see above)" if problems else ""
    return f"{out / 'index.html'}: {num_runs} runs{waiting}, {num_figures} figures{left_out}", problems


def _load(folder: Path, columns: set[str], claims: Sequence[Loaded], settings: Settings, distribute: Map) -> _Loaded:
    """One experiment's runs and groups, and the problems of its runs."""
    numbers = dict.fromkeys(number for claim in claims for number in claim.numbers)
    try:
        runs, problems = read_runs(folder, columns, settings.final_fraction, settings.thresholds, distribute, numbers)
        num_queued = sum(map(queued, run_folders(folder)))
    except Unreadable as error:
        return _Loaded(folder.name, [], [], [Problem(folder.name, f"{error}; the experiment is left out")])
    groups, more = group_runs(runs)
    return _Loaded(folder.name, runs, groups, problems + more + summary.missing_metrics(groups), num_queued)


def _tables(section: Section, settings: Settings) -> list[Table]:
    """Every table that has a row."""
    groups = section.groups
    control = [group for group in groups if not group.language]
    language = [group for group in groups if group.language]
    makers: dict[str, Callable[[], Table | None]] = {
        **({"returns": partial(summary.returns, control, settings)} if control else {}),
        **({name: partial(make, language, settings) for name, make in LANGUAGE.items()} if language else {}),
        "comparisons": partial(comparisons, groups, settings),
        "overall": partial(overall, groups, settings),
        "spikes": partial(summary.spikes, groups, settings),
        "cost": partial(summary.cost, groups, settings),
        "runs": partial(summary.run_table, groups),
    }
    made = [_attempt(section, f"{section.title}/tables/{name}", make) for name, make in makers.items()]
    return [table for table in made if table is not None and table.rows]


def _attempt(section: Section, where: str, make: Callable[[], Made]) -> Made | None:
    """Return the result of make(), or None after adding a problem: odd numbers in a run must not cost the report."""
    try:
        return make()
    except OSError:  # of the report's own files
        raise
    except Exception as error:
        why = f"cannot be made ({type(error).__name__}: {printable(str(error))}); it is left out"
        section.problems.append(Problem(where, why))
        return None


def _section(
    number: int,
    loaded: _Loaded,
    modules: Mapping[str, FigureModule],
    base: Mapping[str, Line],
    settings: Settings,
    defaults: Settings,
    distribute: Map,
) -> Section:
    """Tables and figures of one experiment, written to out/<experiment>/."""
    section = Section(loaded.name, loaded.groups, list(loaded.problems))
    section.notes += [f"{loaded.num_queued} runs are queued."] if loaded.num_queued else []
    if not loaded.groups:
        return section
    incomparable = baseline_problems(loaded.groups, settings)
    if settings.baseline:
        section.problems += incomparable
    else:
        section.notes += [f"{problem}." for problem in incomparable]
    section.lines = style.assign([(group.algo, group.label) for group in loaded.groups], base)
    figures: list[PageFigure] = []
    drawn = distribute(render, _jobs(number, section, modules, figures, settings, defaults), 1)
    section.tables = _tables(section, settings)
    for table in section.tables:
        _write_table(table, Path(settings.out) / loaded.name / "tables")
    section.pairs, problems = completions.pairs(loaded.groups, settings.max_completions)
    section.films, damaged = films.films(loaded.groups)
    section.problems += problems + damaged
    for i, shown in enumerate(drawn):
        _place(section, figures[i], shown)
    return section


def _jobs(
    number: int,
    section: Section,
    modules: Mapping[str, FigureModule],
    figures: list[PageFigure],
    settings: Settings,
    defaults: Settings,
) -> Iterator[Job]:
    """Yield the figures to draw, each added to `figures`; the section gets a sentence for each that has no data."""
    for name, module in modules.items():
        where = f"{section.title}/figures/{name}"
        panels = _attempt(section, where, partial(module.compute, section.groups, settings))
        if panels is None:
            continue
        if not panels:
            columns = " or ".join(module.COLUMNS) or "a metric that its config declares"
            hint = ", or there is no baseline to compare with" if name in NEED_BASELINE else ""
            if module.COLUMNS or settings.figures is not None:
                _leave_out(section, settings, where, f"no run measured {columns}{hint}")
            continue
        section.problems += _lacking(section.groups, panels, module.COLUMNS, where)
        line = command(settings, defaults, experiment=section.title, figures=[name])
        caption = module.caption(panels, settings) + _absent(section.groups, panels)
        figures.append(_page_figure(section, name, caption, line, settings))
        yield _job(section, figures[-1], f"{number}-{len(figures)}", panels, settings)


def _speed(section: Section, results_dir: Path, settings: Settings, defaults: Settings) -> None:
    """Table and figure of the benchmarks that there are."""
    cases, problems = bench.read(results_dir)
    section.problems += problems
    section.tables += [bench.speed_table(cases)] if cases else []
    if "speed" in settings.wanted_figures and cases:
        _draw_general(section, "speed", cases, speed.caption(cases), settings, defaults)
    elif "speed" in settings.wanted_figures:
        commands = " or ".join(f"`{bench.command(kind, results_dir)}`" for kind in bench.FILES)
        why = f"there is no benchmark in {results_dir / bench.FOLDER}; make one with {commands}"
        _leave_out(section, settings, "figures/speed", why)


def _gates(section: Section, results_dir: Path, settings: Settings, defaults: Settings) -> None:
    """The figure of the gates."""
    try:
        curves = gates.compute(results_dir)
    except Unreadable as error:
        _leave_out(section, settings, "figures/gates", str(error))
        return
    _draw_general(section, "gates", curves, gates.caption(curves), settings, defaults)


def _draw_general(
    section: Section, name: str, panels: Sequence[Any], caption: str, settings: Settings, defaults: Settings
) -> None:
    """Draw a figure in out/figures/."""
    figure = _page_figure(section, name, caption, command(settings, defaults, figures=[name]), settings)
    place = f"0-{len(section.figures) + 1}"
    _place(section, figure, render(_job(section, figure, place, panels, settings)))


def _place(section: Section, figure: PageFigure, shown: dict[str, str] | str) -> None:
    """Add a figure that was drawn, or a problem with the reason why it was not."""
    if isinstance(shown, str):
        section.problems.append(Problem(f"{section.folder}figures/{figure.name}", f"{shown}; it is left out"))
    else:
        section.figures.append(figure._replace(shown=shown))


def _baseline_unknown(groups: Sequence[Group], settings: Settings) -> list[Problem]:
    """A problem if no experiment has the baseline."""
    known = {group.algo for group in groups} | {group.label for group in groups}
    if not settings.baseline or settings.baseline in known:
        return []
    near = close_matches(settings.baseline, known) or f" There are {', '.join(sorted(known))}."
    return [Problem(f"baseline={settings.baseline}", f"no run has this algorithm or label.{near}")]


def _leave_out(section: Section, settings: Settings, where: str, why: str) -> None:
    """Record a figure without data: as a problem if it was requested by name, else as a note."""
    if settings.figures is None:
        section.notes.append(f"{where}: {why}.")
    else:
        section.problems.append(Problem(where, f"{why}; the figure is left out"))


def _lacking(groups: Sequence[Group], panels: Sequence[Any], columns: Sequence[str], where: str) -> list[Problem]:
    """Problems of runs that lack a figure's metric although others of their group have it."""
    drawn = _drawn(panels)
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
    drawn = _drawn(panels)
    absent = sorted({f"{g.label} ({g.task})" for g in groups if (g.task, g.label) not in drawn}) if drawn else []
    return f" Not measured: {', '.join(absent)}." if absent else ""


def _drawn(panels: Sequence[Any]) -> set[tuple[str, str]]:
    """(task, label) of every curve, of figures that have curves by task."""
    return {(panel.task, curve.label) for panel in panels if getattr(panel, "task", "") for curve in getattr(panel, "series", ())}


def _page_figure(section: Section, name: str, caption: str, line: str, settings: Settings) -> PageFigure:
    """A figure that is yet to be drawn."""
    return PageFigure(name, {kind: f"{section.folder}figures/{name}.{kind}" for kind in settings.formats}, caption, line, {})


def _job(section: Section, figure: PageFigure, place: str, panels: Sequence[Any], settings: Settings) -> Job:
    folder = Path(settings.out) / section.title / "figures"
    return Job(figure.name, place, panels, section.lines, folder, settings.formats, settings.dpi)


def _write_table(table: Table, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in (("md", table.markdown()), ("tex", table.tex()), ("csv", table.csv())):
        write_bytes(folder / f"{table.name}.{kind}", text.encode(errors="backslashreplace"))
