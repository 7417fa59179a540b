"""The plan of a sweep: cells, what of them is done, and CPU time from measured rates.

Rates are CPU-seconds of one core, compiled, as measured in experiments/LOG.md; an estimate: other machines and settings differ.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from rgpo.cli.config import Job, config_hash
from rgpo.errors import MAX_LINE, printable, require
from rgpo.paths import cache_dir
from rgpo.runtime import reader, run_folder
from rgpo.runtime.console import table
from rgpo.runtime.former import canonical_config

SECONDS_PER_MILLION = {"halfcheetah": 46.0, "hopper": 77.0, "walker2d": 97.0, "ant": 165.0}  # CPU-s per million steps
OTHER_CONTROL = 80.0  # CPU-s per million steps of other tasks, roughly the mean of those above
PER_LANGUAGE_ITERATION = 0.5  # CPU-s at the embedded scale: half a minute for 60
PER_RUN = 3.0  # CPU-s of imports, evaluation and files
DESIGN = ("registered", "predictions", "null_cells")  # entries of an experiment's design
BUILDING = 20.0  # CPU-s, once: tokenizer, gold reward model and tests of the embedded scale


@dataclass(frozen=True)
class Planned:
    """A run of a sweep: its state, and the folder that has it."""

    job: Job
    state: str
    folder: Path  # another than the job's own if the run was made before some keys existed

    @property
    def done(self) -> bool:
        return self.state == "completed"

    @property
    def seconds(self) -> float:
        """The CPU-seconds that it is expected to take; 0 if it is done."""
        return 0.0 if self.done else seconds_of(self.job)


def planned(jobs: Sequence[Job]) -> list[Planned]:
    """Each job with its state.

    A completed run counts whose configuration differs from the job's only by keys and names that did not exist when it was made.
    """
    own = {job.run_dir.absolute() for job in jobs}
    earlier: dict[Path, dict[str, Path]] = {}
    found = []
    for job in jobs:
        state, folder = run_folder.status(job.run_dir), job.run_dir
        if state == "missing":
            if folder.parent not in earlier:
                earlier[folder.parent] = _completed(folder.parent, own)
            former = earlier[folder.parent].get(config_hash(canonical_config(job.config)))
            state, folder = ("completed", former) if former else (state, folder)
        found.append(Planned(job, state, folder))
    return found


def _completed(experiment: Path, others: Collection[Path]) -> dict[str, Path]:
    """Hash of the present form of each completed run's configuration -> its folder, without those of others."""
    found: dict[str, Path] = {}
    for folder in sorted(experiment.iterdir()) if experiment.is_dir() and os.access(experiment, os.R_OK) else ():
        if folder.absolute() in others:
            continue
        try:
            config = canonical_config(reader.read_yaml(folder / "config.yaml"))
        except (reader.Missing, reader.Unreadable):
            continue
        if run_folder.status(folder) == "completed":
            found.setdefault(config_hash(config), folder)
    return found


def seconds_of(job: Job) -> float:
    """The CPU-seconds that a whole run is expected to take; nan for a scale whose rate was never measured."""
    iterations, steps = job.config["num_iterations"], job.config["total_env_steps"]
    scale = job.choice("scale")
    if scale != "none":
        assert isinstance(iterations, int)
        return PER_RUN + PER_LANGUAGE_ITERATION * iterations if scale == "embedded" else float("nan")
    assert isinstance(iterations or steps, int)
    length = iterations * batch_size(job) if isinstance(iterations, int) else steps
    assert isinstance(length, int)
    return PER_RUN + length / 1e6 * SECONDS_PER_MILLION.get(job.choice("task"), OTHER_CONTROL)


def batch_size(job: Job) -> int:
    """Environment steps of an iteration."""
    from rgpo.cli.build import build

    return build(job.config)[0].batch_size


def building_of(runs: Sequence[Planned]) -> float:
    """The CPU-seconds of what the embedded scale builds once, if a run needs it and it is not there."""
    needed = any(run.job.choice("scale") == "embedded" and not run.done for run in runs)
    return BUILDING if needed and not any(cache_dir().glob("embedded*")) else 0.0


def expected(seconds: float) -> str:
    """CPU-seconds in words."""
    if seconds != seconds:
        return "an unknown time (no rate was measured at this scale)"
    if seconds < 3600:
        return f"about {max(1, round(seconds / 60))} CPU-minutes" if seconds else "nothing"
    return f"about {seconds / 3600:.1f} CPU-hours"


def describe(jobs: Sequence[Job]) -> str:
    """Runs, states and folders, cells with what is done and what is left of them, and the parts of each algorithm."""
    runs = planned(jobs)
    rows: list[tuple[str, ...]] = []
    parts: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        row = (_words(run.job) or "(defaults)", run.state, str(run.folder))
        rows.append(tuple(printable(text, MAX_LINE) for text in row))
        parts.setdefault(run.job.choice("algo"), []).append(run.job.describe())
    lines = [table(rows, ("run", "state", "folder"))]
    if len(runs) > 1:
        lines += ["", table(_cells(runs), ("cell", "done", "left, CPU-h")), ""]
    lines += _design(runs)
    for algo, found in parts.items():
        lines.append(f"algo={algo}")
        for name in dict.fromkeys(name for description in found for name in description):
            values = {description.get(name, "none") for description in found}
            lines.append(f"  {name}: {values.pop() if len(values) == 1 else f'{len(values)} variants'}")
    left = sum(run.seconds for run in runs) + building_of(runs)
    whole = sum(seconds_of(run.job) for run in runs) + building_of(runs)
    done = sum(run.done for run in runs)
    lines.append(f"{len(rows)} run(s), {done} done; left: {expected(left)} of {expected(whole)}, from measured rates")
    return "\n".join(lines)


def _design(runs: Sequence[Planned]) -> list[str]:
    """Factors, blocks, null cells and predictions of an experiment that was registered with them; [] of any other.

    Raises: ConfigError for a design with other entries, or a null cell that is not among the runs' words.
    """
    design = runs[0].job.config["design"]
    if design is None:
        return []
    entries = ", ".join(DESIGN)
    require(isinstance(design, dict) and design.keys() == {*DESIGN}, "design", design, f"give a mapping with {entries}")
    assert isinstance(design, dict)
    words = [dict(word.split("=", 1) for word in run.job.overrides if "=" in word) for run in runs]
    varied = {key: len({cell.get(key) for cell in words}) for key in dict.fromkeys(key for cell in words for key in cell)}
    factors = ", ".join(f"{key} ({n})" for key, n in varied.items() if n > 1 and key != "seed")
    for cell in design["null_cells"]:
        wanted = dict(word.split("=", 1) for word in str(cell).split())
        there = any(all(cell.get(key, value) == value for key, value in wanted.items()) for cell in words)
        require(there or len(runs) == 1, "design.null_cells", cell, "no run of the experiment has these words; correct it")
    predictions, nulls = ", ".join(map(str, design["predictions"])), "; ".join(map(str, design["null_cells"]))
    return [
        f"registered {design['registered']}, predictions {predictions} (experiments/predictions.md)",
        f"factors: {factors or 'none'}; blocks: seed ({varied.get('seed', 1)}); null cells: {nulls or 'none'}",
        "",
    ]


def _cells(runs: Sequence[Planned]) -> list[tuple[str, ...]]:
    """One row for each cell of the design: its words without the seed, seeds that are done, and CPU-hours that are left."""
    cells: dict[str, list[Planned]] = {}
    for run in runs:
        cells.setdefault(_words(run.job, "seed") or "(defaults)", []).append(run)
    rows: list[tuple[str, ...]] = []
    for words, of_cell in cells.items():
        left = sum(run.seconds for run in of_cell)
        done = f"{sum(run.done for run in of_cell)} of {len(of_cell)}"
        rows.append((printable(words, MAX_LINE), done, "?" if left != left else f"{left / 3600:.2f}"))
    return rows


def _words(job: Job, *without: str) -> str:
    return " ".join(word for word in job.overrides if word.partition("=")[0] not in ("plan", *without))
