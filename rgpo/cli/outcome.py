"""Terminal summary of a sweep: the number of complete runs, the results of each cell, and why the other runs failed."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rgpo.cli.config import Job
from rgpo.errors import MAX_LINE, printable, shell_word
from rgpo.runtime import reader, run_folder
from rgpo.runtime.console import table

RESULTS = {"return": "return/train_mean", "reward": "reward/train_mean"}  # heading -> column; a task has one of them
KL = "kl/old_exact"
FINAL = 0.1  # a run's result is the mean over this last share of its values, as in the report
MAX_ROWS = 40


class Cell(NamedTuple):
    """The completed runs of a sweep that differ only in their seed."""

    task: str
    words: tuple[str, ...]
    results: list[float]
    kls: list[float]


@dataclass(frozen=True)
class Tally:
    """Counter of a sweep's ended runs, shared by all processes: a file with one byte per run."""

    path: Path
    num_runs: int
    started: float  # seconds since the epoch

    def add(self, failed: bool) -> str:
        """Count a run; returns a line with the number of ended and failed runs and the estimated time left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                file.write(b"f" if failed else b".")
                file.flush()
                file.seek(0)
                ended = file.read()
        except OSError as error:
            return f"progress is not known: {self.path} cannot be written ({error.strerror})"
        left = (time.time() - self.started) / len(ended) * max(0, self.num_runs - len(ended))
        failures = f", {ended.count(b'f')} failed" if b"f" in ended else ""
        return f"{len(ended)} of {self.num_runs} runs ended{failures}" + (f", about {duration(left)} left" if left else "")


def duration(seconds: float) -> str:
    """Format a time in the largest unit (h, min, s) in which it is at least 2."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def show(jobs: Sequence[Job], broken: Mapping[Path, str], earlier: Mapping[Path, Path]) -> int:
    """Print the summary; returns 1 if any run is neither complete nor running, else 0.

    broken: run folder -> error of its lost process; earlier: run folder -> completed folder of an earlier version.
    """
    states = {job.run_dir: run_folder.status(earlier.get(job.run_dir, job.run_dir)) for job in jobs}
    count = Counter(states.values())
    others = [f", {count[state]} {text}" for state, text in (("running", "running"), ("missing", "queued")) if count[state]]
    print(f"{count['completed']} of {len(jobs)} runs are complete{''.join(others)}", flush=True)
    done = [(job, earlier.get(job.run_dir, job.run_dir)) for job in jobs if states[job.run_dir] == "completed"]
    if done and len(jobs) > 1:
        print(results(done), flush=True)
    for job in jobs:
        state, log = states[job.run_dir], job.run_dir / "error.txt"
        if state in ("failed", "interrupted") or job.run_dir in broken:
            killed = "its process was killed; repeat the command to resume"
            reason = run_folder.read_state(job.run_dir).get("reason") or broken.get(job.run_dir, killed)
            where = f"log: {log}" if state == "failed" and log.exists() else f"folder: {job.run_dir}"
            line = f"{state}: {' '.join(job.overrides)}: {printable(reason)} ({where})"
            print(f"  {printable(line, MAX_LINE)}", file=sys.stderr)
    if count["missing"]:
        stops = jobs[0].config["on_failure"] == "stop" and count["failed"]
        remedy = (
            "with on_failure=continue the same command goes past what failed" if stops else "repeat the command to start them"
        )
        have = "has" if count["missing"] == 1 else "have"
        print(f"  {count['missing']} of {len(jobs)} runs {have} not started; {remedy}", file=sys.stderr)
    return int(count["completed"] + count["running"] < len(jobs))


def results(done: Sequence[tuple[Job, Path]]) -> str:
    """One line per cell: mean +- standard error of its runs' results (n) and mean KL; the highest mean of each task is marked."""
    cells, heading = cells_of(done)
    by_task: dict[str, list[Cell]] = {}
    for cell in cells:
        by_task.setdefault(cell.task, []).append(cell)
    highest = [max(rivals, key=lambda cell: mean(cell.results)) for rivals in by_task.values() if len(rivals) > 1]
    rows = []
    for cell in cells[:MAX_ROWS]:
        mark = "  highest mean" if cell in highest and cell.results else ""
        kl = f"{mean(cell.kls):.3g}" if cell.kls else "-"
        rows.append([f"  {' '.join(cell.words) or cell.task}", f"{spread(cell.results)}{mark}", kl])
    header = ["  cell", f"final {heading}, mean +- SE (n)", "final KL"]
    lines = [printable(line, MAX_LINE) for line in table(rows, header).splitlines()]
    lines += [f"  and {len(cells) - MAX_ROWS} cells more"] if len(cells) > MAX_ROWS else []
    config = done[0][0].config
    words = ["rgpo-report", f"results_dir={config['results_dir']}", f"experiment={config['name']}"]
    return "\n".join([*lines, f"`{' '.join(map(shell_word, words))}` draws them"])


def cells_of(done: Sequence[tuple[Job, Path]]) -> tuple[list[Cell], str]:
    """The cells in order of their first runs, and the heading of the results column."""
    common = set.intersection(*(set(job.overrides) for job, _ in done)) if len(done) > 1 else set()
    found: dict[tuple[str, tuple[str, ...]], Cell] = {}
    heading = "result"
    for job, folder in done:
        words = tuple(word for word in job.overrides if word not in common and not word.startswith("seed="))
        key = (job.choice("task"), words)
        cell = found.setdefault(key, Cell(*key, [], []))
        try:
            values = final_values(folder)
        except (reader.Missing, reader.Unreadable) as error:
            print(f"  {printable(f'{folder}: {error}', MAX_LINE)}", file=sys.stderr)
            continue
        for name, column in RESULTS.items():
            if column in values:
                heading = name
                cell.results.append(values[column])
        cell.kls.extend([values[KL]] if KL in values else [])
    return list(found.values()), heading


def final_values(folder: Path) -> dict[str, float]:
    """Column -> mean of the last tenth of a run's finite values, for the columns that it measured.

    Raises: Unreadable if metrics.parquet is damaged; Missing if there is none.
    """
    with reader.parquet(folder / "metrics.parquet") as file:
        names = [name for name in (*RESULTS.values(), KL) if name in file.schema_arrow.names]
        columns = file.read(names, use_threads=False).to_pydict()
    finite = {name: [x for x in values if x is not None and math.isfinite(x)] for name, values in columns.items()}
    return {name: float(np.mean(x[-max(1, round(len(x) * FINAL)) :])) for name, x in finite.items() if x}


def mean(values: Sequence[float]) -> float:
    """The mean, or -inf without values, so that a cell without results never has the highest."""
    return float(np.mean(values)) if values else -math.inf


def spread(values: Sequence[float]) -> str:
    """mean +- standard error (n)."""
    if not values:
        return "not measured"
    error = f" +- {np.std(values, ddof=1) / math.sqrt(len(values)):.3g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{error} ({len(values)})"
