"""Every file of every run, read and compared with the run's manifest of digests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rgpo.report.read import rows
from rgpo.report.read.load import experiments, queued, run_folders
from rgpo.report.read.run import Problem
from rgpo.report.settings import Settings
from rgpo.runtime import manifest, reader
from rgpo.runtime.provenance import Provenance
from rgpo.runtime.reader import Missing, Unreadable
from rgpo.runtime.run_folder import RunState
from rgpo.runtime.schema import GLOSSARY, SAMPLES

KINDS = {"text": str, "whole": int, "number": float, "yes/no": bool}


def verify(settings: Settings) -> tuple[str, list[Problem]]:
    """A summary in one line, and a problem for each damaged run.

    Raises: ConfigError if there are no results.
    """
    results_dir = Path(settings.results_dir)
    problems: list[Problem] = []
    num_runs = num_checked = 0
    for name in experiments(results_dir, settings.experiment):
        for folder in run_folders(results_dir / name):
            if not queued(folder):
                num_runs, num_checked = num_runs + 1, num_checked + (folder / manifest.NAME).exists()
                damage = _damage(folder)
                problems += [Problem(f"{name}/{folder.name}", "; ".join(damage))] if damage else []
    digests = f"{num_checked} of them finished with a manifest"
    return f"{results_dir}: {num_runs} runs ({digests}), {len(problems)} damaged", problems


def _damage(folder: Path) -> list[str]:
    """One clause for each file that is damaged, and one for rows that are missing."""
    found = manifest.damage(folder)
    kinds = {name: KINDS[kind] for name, kind in SAMPLES.items()}
    checks = {
        "config.yaml": reader.read_yaml,
        "state.json": lambda path: reader.read_json(path, RunState),
        "provenance.json": lambda path: reader.read_json(path, Provenance),
        "samples.parquet": lambda path: rows.read_records(path, kinds),
    }
    for name, read in checks.items():
        try:
            read(folder / name)
        except Missing as error:
            if name == "config.yaml":
                found.setdefault(name, str(error))
        except Unreadable as error:
            found.setdefault(name, str(error))
    for part in rows.parts(folder / "samples"):
        if damage := manifest.part_damage(part):
            found[part.name] = damage
    clauses = list(found.values())
    if "metrics.parquet" not in found and rows.files(folder):
        try:
            read = rows.read(folder, GLOSSARY)
        except Unreadable as error:
            return [*clauses, str(error)]
        iteration = read.columns["iteration"]
        gaps = np.setdiff1d(np.arange(1, iteration[-1] + 1), iteration)
        clauses += [*read.problems, *([f"{len(gaps)} iterations up to {iteration[-1]:g} have no row"] if len(gaps) else [])]
    return clauses
