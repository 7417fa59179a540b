"""The plan of a sweep: its cells, the progress of each, and the expected CPU time.

Times are estimates from rates measured with compiled code on one core (experiments/LOG.md); other machines and settings differ.
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
OTHER_CONTROL = 80.0  # for other tasks: roughly the mean of those above
PER_LANGUAGE_ITERATION = 0.5  # CPU-s at the embedded scale: 30 s for 60 iterations
PER_RUN = 3.0  # CPU-s for imports, evaluation and files
DESIGN = ("registered", "predictions", "null_cells")  # keys of an experiment's design
BUILDING = 20.0  # CPU-s to build the embedded scale's tokenizer and gold reward model once, and to test them


@dataclass(frozen=True)
class Planned:
    """A run of a sweep with its state and its folder."""

    job: Job
    state: str
    folder: Path  # not the job's own if the run was completed before some keys existed

    @property
    def done(self) -> bool:
        return self.state == "completed"

    @property
    def seconds(self) -> float:
        """Expected CPU-seconds; 0 if the run is done."""
        return 0.0 if self.done else seconds_of(self.job)


def planned(jobs: Sequence[Job]) -> list[Planned]:
    """Every job with its state.

    A completed run also counts if its configuration differs from the job's only in keys and names introduced since it was made.
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
    """Config hash (in the current form) -> folder, for every completed run of an experiment whose folder is not in others."""
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
    """Expected CPU-seconds of a whole run; nan for a scale whose rate has not been measured."""
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
    """Environment steps per iteration."""
    from rgpo.cli.build import build

    return build(job.config)[0].batch_size


def building_of(runs: Sequence[Planned]) -> float:
    """CPU-seconds to build the embedded scale's artifacts, if a run needs them and the cache has none."""
    needed = any(run.job.choice("scale") == "embedded" and not run.done for run in runs)
    return BUILDING if needed and not any(cache_dir().glob("embedded*")) else 0.0


def expected(seconds: float) -> str:
    """CPU-seconds in words."""
    if seconds != seconds:
        return "an unknown time (no rate was measured at this scale)"
    if seconds < 3600:
        minutes = max(1, round(seconds / 60))
        return f"about {minutes} CPU-minute{'s' if minutes > 1 else ''}" if seconds else "nothing"
    return f"about {seconds / 3600:.1f} CPU-hours"


def describe(jobs: Sequence[Job]) -> str:
    """The plan as text: runs with state and folder, progress and time left per cell, and the parts of each algorithm."""
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
    time = f"{expected(left)} of {expected(whole)}, from measured rates" if left == left else expected(left)
    lines.append(f"{len(rows)} run(s), {done} done; left: {time}")
    return "\n".join(lines)


def _design(runs: Sequence[Planned]) -> list[str]:
    """Factors, blocks, null cells and predictions of an experiment with a registered design; [] for any other.

    Raises: ConfigError if the design has other keys, or if no run matches one of its null cells.
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
    """One row per cell: its overrides without the seed, the number of completed seeds, and the CPU-hours left."""
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
