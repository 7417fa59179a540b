"""Build the whole report: read the runs, compute, write. Every file is replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path

from rgpo.atomic import remove, remove_temporary, replacing
from rgpo.errors import ConfigError
from rgpo.paths import claims_dir
from rgpo.report.claims.claim import read_claims
from rgpo.report.claims.external import read_external
from rgpo.report.claims.ledger import TABLES, Evidence, around, judge_all, ledger, renew
from rgpo.report.claims.published import published_table
from rgpo.report.claims.theory import read_theory
from rgpo.report.figures.looks import algorithm_lines
from rgpo.report.figures.render import load as load_figure
from rgpo.report.page.answer import answer
from rgpo.report.page.claim_panels import claim_panels
from rgpo.report.page.columns import MAX_VALUES
from rgpo.report.page.data import experiment_data
from rgpo.report.page.index import PageFigure, Section, render_page
from rgpo.report.read.load import experiments
from rgpo.report.read.repeated import read_repeated
from rgpo.report.read.run import Problem
from rgpo.report.read.workers import workers
from rgpo.report.section import TABLE_FORMATS, add_gates, add_speed, baseline_unknown, load, section_of, write_table
from rgpo.report.settings import WITHOUT_RUNS, Settings, command
from rgpo.report.tables.advice import advice
from rgpo.runtime.schema import GLOSSARY

MIN_POINTS, MAX_POINTS = 20, 400  # points per curve
DRAWN_POINTS = 20_000  # points in all runs' curves of one metric


def build(settings: Settings, defaults: Settings, live: bool = False) -> tuple[str, list[Problem]]:
    """Write the report; returns a one-line summary and the problems.

    live: the page listens for events from the server that delivers it.

    Raises: ConfigError if there are no results, there is no experiment of that name, or `out` cannot be written.
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
    modules = {name: load_figure(name) for name in settings.wanted_figures if name not in WITHOUT_RUNS}
    columns = {column for module in modules.values() for column in module.COLUMNS}
    columns |= {column for claim in claims for column in claim.columns} | set(GLOSSARY)
    num_folders = sum(sum(1 for _ in folder.iterdir()) for folder in folders if os.access(folder, os.R_OK))
    num_points = min(MAX_POINTS, max(MIN_POINTS, DRAWN_POINTS // max(num_folders, 1)))
    with workers(num_folders) as distribute:
        loaded = [load(folder, columns, claims, settings, num_points, distribute) for folder in folders]
    everything = [group for experiment in loaded for group in experiment.groups]
    every_run = [run for experiment in loaded for run in experiment.runs]
    theory, lost = read_theory(results_dir)
    repeated, unread = read_repeated(results_dir)
    judged, unjudged = judge_all(claims, Evidence(every_run, theory, anchors, repeated))
    ledgers = ledger(judged)
    found = answer(judged, [folder.name for folder in folders]) if not settings.experiment else None
    advised = advice([(experiment.name, experiment.groups) for experiment in loaded], settings, repeated)
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_temporary(out)
        base = algorithm_lines(group.algo for group in everything)
        sections = [section_of(i, one, modules, base, settings, defaults) for i, one in enumerate(loaded, start=1)]
        for section in sections:
            share = MAX_VALUES * len(section.runs) // max(len(every_run), 1)
            section.data = experiment_data(
                section.title, section.groups, section.lines, section.pairs, anchors, advised, settings, share
            )
        general = Section("", [], baseline_unknown(everything, settings) + damaged + more + lost + unread + unjudged)
        general.tables += filter(None, [published_table(anchors, everything, settings.confidence)])
        covers_all = bool(found) or bool(settings.claims and not settings.experiment)
        general.tables += ledgers if covers_all else []
        add_speed(general, results_dir, settings, defaults)
        if "gates" in settings.wanted_figures:
            add_gates(general, results_dir, settings, defaults)
        for one in judged if found else []:
            panels = claim_panels(one, every_run, anchors)
            if panels:
                claim = one.loaded.claim
                caption = f"{claim.id}, {one.verdict.outcome}: {claim.claim}. Here: {one.verdict.ours}."
                line = command(settings, defaults)
                general.figures.append(PageFigure(f"claim_{one.loaded.path.stem}", {}, caption, line, (), panels))
        for table in general.tables:
            write_table(table, out / "tables")
        stale = {*TABLES} - {table.name for table in ledgers} if covers_all else ()  # left over from a report with other claims
        remove([out / "tables" / f"{name}.{kind}" for name in stale for kind in TABLE_FORMATS])
        with replacing(out / "index.html") as aside, aside.open("w", encoding="utf-8", errors="backslashreplace") as page:
            page.writelines(render_page(sections, general, found, advised, settings, defaults, live))
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}); give a folder that can") from error
    if settings.ledger:
        renew(Path(settings.ledger), ledgers)
    problems = [problem for section in [*sections, general] for problem in section.problems]
    num_figures = sum(not f.name.startswith("claim_") for section in [*sections, general] for f in section.figures)
    num_queued = sum(experiment.num_queued for experiment in loaded)
    waiting = f", {num_queued} queued" if num_queued else ""
    left_out = f", {len(problems)} left out or incomplete (see above)" if problems else ""
    num_runs = sum(len(group.runs) for group in everything)
    return f"{out / 'index.html'}: {num_runs} runs{waiting}, {num_figures} figures{left_out}", problems
