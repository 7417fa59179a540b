"""Check every file of every run against the digests in the run's manifest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rgpo.report.read import rows
from rgpo.report.read.load import experiments, queued, read_run, run_folders
from rgpo.report.read.reduce import Detail
from rgpo.report.read.run import Problem
from rgpo.report.settings import Settings
from rgpo.runtime import manifest, reader
from rgpo.runtime.provenance import Provenance
from rgpo.runtime.reader import Missing, Unreadable
from rgpo.runtime.run_folder import RunState
from rgpo.runtime.schema import GLOSSARY

MIN_POINTS = 20  # curves are read but not drawn


def verify(settings: Settings) -> tuple[str, list[Problem]]:
    """Check all runs; returns a one-line summary and a problem for each damaged run.

    Raises: ConfigError if there are no results.
    """
    results_dir = Path(settings.results_dir)
    problems: list[Problem] = []
    num_runs = num_checked = 0
    for name in experiments(results_dir, settings.experiment):
        for folder in run_folders(results_dir / name):
            if not queued(folder):
                num_runs, num_checked = num_runs + 1, num_checked + (folder / manifest.NAME).exists()
                clauses = _damage(folder)
                problems += [Problem(f"{name}/{folder.name}", "; ".join(clauses))] if clauses else []
    digests = f"{num_checked} of them finished with a manifest"
    return f"{results_dir}: {num_runs} runs ({digests}), {len(problems)} damaged", problems


def _damage(folder: Path) -> list[str]:
    """One clause per damaged file, and the other reasons why the report would flag a run."""
    found = manifest.damage(folder)
    checks: dict[str, Callable[[Path], object]] = {
        "config.yaml": reader.read_yaml,
        "state.json": lambda path: reader.read_json(path, RunState),
        "provenance.json": lambda path: reader.read_json(path, Provenance),
    }
    for name, read in checks.items():
        try:
            read(folder / name)
        except Missing as error:
            if name == "config.yaml":
                found.setdefault(name, str(error))
        except Unreadable as error:
            found.setdefault(name, str(error))
    if rows.SAMPLES_FILE not in found:
        try:
            rows.read_samples(folder, rows.SAMPLE_COLUMNS)
        except Unreadable as error:
            found[rows.SAMPLES_FILE] = str(error)
    if not found.keys() & {"metrics.parquet", *checks} and rows.files(folder):
        try:
            _, problems = read_run(folder, GLOSSARY, Detail(0.1, (), MIN_POINTS))
        except Unreadable as error:
            return [*found.values(), str(error)]
        return [*found.values(), *(problem.why for problem in problems)]
    return list(found.values())
