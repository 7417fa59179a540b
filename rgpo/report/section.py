"""One experiment's part of the report (runs, tables and figures), and the part that covers all experiments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rgpo.atomic import write_bytes
from rgpo.errors import close_matches
from rgpo.report.claims.claim import Loaded as LoadedClaim
from rgpo.report.figures import gates, speed
from rgpo.report.figures.looks import Line, assign
from rgpo.report.figures.render import Failed, FigureModule, Job, render
from rgpo.report.page import completions, films
from rgpo.report.page.index import PageFigure, Section
from rgpo.report.page.panels import drawn as page_panels
from rgpo.report.page.panels import equal_kl, equal_kl_over_settings
from rgpo.report.read.arms import arms_of
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import queued, read_runs, run_folders
from rgpo.report.read.run import Problem, Run
from rgpo.report.read.workers import Map
from rgpo.report.settings import EXPLORED, FIGURES, NEED_BASELINE, Settings, command
from rgpo.report.tables import bench, summary
from rgpo.report.tables.baseline import baseline_choice, baseline_problems, comparisons
from rgpo.report.tables.matched import matched_table
from rgpo.report.tables.overall import overall
from rgpo.report.tables.table import Table
from rgpo.runtime.reader import Unreadable, printable
from rgpo.runtime.schema import is_list

Made = TypeVar("Made")
MAX_NAMED = 8  # most arms named in a sentence
TABLE_FORMATS = ("md", "tex", "csv")


@dataclass
class Experiment:
    """The runs in an experiment's folder, grouped."""

    name: str
    runs: list[Run]
    groups: list[Group]
    problems: list[Problem]
    num_queued: int = 0  # number of a sweep's runs without rows so far


def load(
    folder: Path, columns: set[str], claims: Sequence[LoadedClaim], settings: Settings, num_points: int, distribute: Map
) -> Experiment:
    """Load an experiment's runs, groups and problems."""
    numbers = dict.fromkeys(number for claim in claims for number in claim.numbers)
    paths = dict.fromkeys(column for claim in claims if claim.rule for column in claim.rule.curves())
    fraction, thresholds = settings.final_fraction, settings.thresholds
    try:
        runs, problems = read_runs(folder, columns, fraction, thresholds, distribute, numbers, num_points, paths)
        num_queued = sum(map(queued, run_folders(folder)))
    except Unreadable as error:
        return Experiment(folder.name, [], [], [Problem(folder.name, f"{error}; the experiment is left out")])
    groups, more = group_runs(runs)
    return Experiment(folder.name, runs, groups, problems + more + summary.missing_metrics(groups), num_queued)


def _tables(section: Section, settings: Settings) -> list[Table]:
    """All tables that have rows."""
    groups = section.groups
    control = [group for group in groups if not group.language]
    language = [group for group in groups if group.language]
    makers: dict[str, Callable[[], Table | None]] = {
        **({"returns": partial(summary.returns, control, settings)} if control else {}),
        **({"rewards": partial(summary.rewards, language, settings)} if language else {}),
        "matched_kl": partial(matched_table, groups, settings),
        **({"reward_terms": partial(summary.reward_terms, language, settings)} if language else {}),
        "comparisons": partial(comparisons, groups, settings),
        "overall": partial(overall, groups, settings),
        "spikes": partial(summary.spikes, groups, settings),
        "cost": partial(summary.cost, groups, settings),
        "runs": partial(summary.run_table, groups),
    }
    made = [_attempt(section, f"{section.title}/tables/{name}", make) for name, make in makers.items()]
    return [table for table in made if table is not None and table.rows]


def _attempt(section: Section, where: str, make: Callable[[], Made]) -> Made | None:
    """Return make(), or None after adding a problem, since unusual numbers in a run must not break the report."""
    try:
        return make()
    except OSError:  # from writing the report's own files
        raise
    except Exception as error:
        why = f"cannot be made ({type(error).__name__}: {printable(str(error))}); it is left out"
        section.problems.append(Problem(where, why))
        return None


def section_of(
    number: int,
    loaded: Experiment,
    modules: Mapping[str, FigureModule],
    base: Mapping[str, Line],
    settings: Settings,
    defaults: Settings,
) -> Section:
    """Make an experiment's tables and figures; files are written to out/<experiment>/."""
    section = Section(loaded.name, loaded.groups, list(loaded.problems))
    section.notes += [f"{loaded.num_queued} runs are queued."] if loaded.num_queued else []
    if not loaded.groups:
        return section
    section.problems += baseline_problems(loaded.groups, settings)
    section.notes += baseline_choice(loaded.groups, settings) + _annealing(loaded.groups)
    arms = [arm for arm in arms_of(loaded.groups) if len(arm.groups) > 1]
    named = [(arm.algo, arm.label) for arm in arms] + [(group.algo, group.label) for group in loaded.groups]
    section.lines = assign(named, base)
    for name, module in modules.items():
        _add_figure(section, f"{number}-{len(section.figures) + 1}", name, module, settings, defaults)
    section.tables = _tables(section, settings)
    for table in section.tables:
        write_table(table, Path(settings.out) / loaded.name / "tables")
    section.pairs, problems = completions.pairs(loaded.groups, settings.max_completions)
    section.films, damaged = films.films(loaded.groups)
    section.problems += problems + damaged
    return section


def _annealing(groups: Sequence[Group]) -> list[str]:
    """A sentence about arms whose learning rate is annealed to 0, which flattens the ends of their curves."""
    found = [next((v for k, v in group.runs[0].config.items() if k.endswith(".anneal_lr")), None) for group in groups]
    annealed = list(dict.fromkeys(group.label for group, value in zip(groups, found, strict=True) if value is True))
    if not annealed:
        return []
    who = "every arm" if all(found) else ", ".join(annealed[:MAX_NAMED]) + (" and others" if len(annealed) > MAX_NAMED else "")
    return [f"The learning rate is annealed to 0 over the run (anneal_lr) in {who}; its curves would differ in a longer run."]


def _add_figure(section: Section, place: str, name: str, module: FigureModule, settings: Settings, defaults: Settings) -> None:
    """Add a figure: metrics drawn by the page's script, panels computed here, or a user's own drawing."""
    where = f"{section.title}/figures/{name}"
    metrics = tuple(column for column in _columns(section.groups, module) if any(r.has(column) for r in section.runs))
    drawn = name in EXPLORED and not settings.format
    panels: Sequence[Any] | None = (
        metrics if drawn else _attempt(section, where, partial(module.compute, section.groups, settings))
    )
    if panels is None:
        return
    if not panels:
        if module.COLUMNS or settings.figures is not None:
            _leave_out(section, settings, where, _unmeasured(section.groups, name, module))
        return
    section.problems += _lacking(section.groups, module.COLUMNS, where)
    line = command(settings, defaults, experiment=section.title, figures=[name])
    caption = "" if drawn else module.caption(panels, settings)
    figure = PageFigure(name, _paths(section, name, settings), caption, line, metrics if name in EXPLORED else ())
    _draw(section, figure, place, panels, settings)


def _unmeasured(groups: Sequence[Group], name: str, module: FigureModule) -> str:
    """A clause on what the runs would have to measure for the figure."""
    absent = [column for column in module.COLUMNS if not any(run.has(column) for group in groups for run in group.runs)]
    hint = ", or there is no baseline to compare with" if name in NEED_BASELINE else ""
    if absent:
        return f"no run measured {' or '.join(absent)}{hint}"
    if module.COLUMNS:
        return f"no run measured all of {', '.join(module.COLUMNS)} as often as the figure needs{hint}"
    if name == "arm_gates":
        return "no run measured the curve of its gate, as runs do now"
    return f"no run measured a metric that its config declares{hint}"


def _columns(groups: Sequence[Group], module: FigureModule) -> Sequence[str]:
    """A figure's metrics: its own, or those declared in the runs' configs."""
    declared = dict.fromkeys(name for group in groups for run in group.runs for name in run.metrics)
    return module.COLUMNS or [name for name in declared if not is_list(name)]


def _draw(section: Section, figure: PageFigure, place: str, panels: Sequence[Any], settings: Settings) -> None:
    """Add a figure's data for the page, and its drawing if a format is set or the figure is a user's own."""
    own = figure.name not in FIGURES
    if settings.format or own:
        kinds = ([settings.format] if settings.format else []) + (["svg"] if own and settings.format != "svg" else [])
        folder = Path(settings.out) / section.title / "figures"
        size = (settings.width, settings.font_size, settings.dpi)
        shown = render(Job(figure.name, place, panels, section.lines, folder, settings.format, tuple(kinds), *size))
        if isinstance(shown, Failed):
            section.problems.append(Problem(f"{section.folder}figures/{figure.name}", f"{shown.why}; it is left out"))
            return
        figure = figure._replace(svg=shown if own else "")
    if not own and not figure.metrics:
        more = {"frontier": equal_kl, "settings_frontier": equal_kl_over_settings}.get(figure.name)
        compared = more(section.groups, settings) if more else []
        figure = figure._replace(panels=page_panels(figure.name, panels) + compared)
    section.figures.append(figure)


def add_speed(section: Section, results_dir: Path, settings: Settings, defaults: Settings) -> None:
    """Add the table and figure of the existing benchmarks."""
    cases, problems = bench.read(results_dir)
    section.problems += problems
    section.tables += [bench.speed_table(cases)] if cases else []
    if "speed" in settings.wanted_figures and cases:
        _add_general(section, "speed", cases, speed.caption(cases), settings, defaults)
    elif "speed" in settings.wanted_figures:
        commands = " or ".join(f"`{bench.command(kind, results_dir)}`" for kind in bench.FILES)
        why = f"there is no benchmark in {results_dir / bench.FOLDER}; make one with {commands}"
        _leave_out(section, settings, "figures/speed", why)


def add_gates(section: Section, results_dir: Path, settings: Settings, defaults: Settings) -> None:
    """Add the figure of all gates."""
    try:
        curves = gates.compute(results_dir)
    except Unreadable as error:
        _leave_out(section, settings, "figures/gates", str(error))
        return
    _add_general(section, "gates", curves, gates.caption(curves), settings, defaults)


def _add_general(
    section: Section, name: str, panels: Sequence[Any], caption: str, settings: Settings, defaults: Settings
) -> None:
    """Add a figure that covers all experiments, with files in out/figures/."""
    line = command(settings, defaults, figures=[name])
    figure = PageFigure(name, _paths(section, name, settings), caption, line)
    _draw(section, figure, f"0-{len(section.figures) + 1}", panels, settings)


def baseline_unknown(groups: Sequence[Group], settings: Settings) -> list[Problem]:
    """A problem if the baseline is in no experiment."""
    known = {group.algo for group in groups} | {group.label for group in groups}
    if not settings.baseline or settings.baseline in known:
        return []
    near = close_matches(settings.baseline, known) or f" There are {', '.join(sorted(known))}."
    return [Problem(f"baseline={settings.baseline}", f"no run has this algorithm or label.{near}")]


def _leave_out(section: Section, settings: Settings, where: str, why: str) -> None:
    """Record a figure without data, as a problem if it was requested by name, else as a note."""
    if settings.figures is None:
        section.notes.append(f"{where}: {why}.")
    else:
        section.problems.append(Problem(where, f"{why}; the figure is left out"))


def _lacking(groups: Sequence[Group], columns: Sequence[str], where: str) -> list[Problem]:
    """Problems of runs that lack one of a figure's metrics, although others in their group have it."""
    problems = []
    for group in groups:
        for column in columns:
            have = [run for run in group.used if run.has(column)]
            lacking = [run.run_id for run in group.used if run not in have]
            if have and lacking:
                problems.append(Problem(where, f"{column} was never measured in {', '.join(lacking)}"))
    return problems


def _paths(section: Section, name: str, settings: Settings) -> dict[str, str]:
    """Format -> path of a figure's file inside `out`."""
    return {settings.format: f"{section.folder}figures/{name}.{settings.format}"} if settings.format else {}


def write_table(table: Table, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in zip(TABLE_FORMATS, (table.markdown(), table.tex(), table.csv()), strict=True):
        write_bytes(folder / f"{table.name}.{kind}", text.encode(errors="backslashreplace"))
