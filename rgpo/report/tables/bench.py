"""Speed compared with other implementations on the same work: results_dir/bench/*.parquet, one row per contestant and round.

The files are written by benchmarks/control.py and benchmarks/language.py. Contestants are paired by round, because the machine's
load was similar within a round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rgpo.errors import shell_word
from rgpo.report.read.rows import read_records
from rgpo.report.read.run import Problem
from rgpo.report.stats.bootstrap import NAN, Interval
from rgpo.report.tables.table import Cell, Table, estimate, interval_cells, number, word
from rgpo.runtime.reader import Missing, Unreadable, printable

FOLDER, OURS = "bench", "ours"
MAX_NAME, MAX_ROWS = 60, 10_000  # most characters in a name; most rows in a file
PHASES = ("collect", "update", "diagnostics", "gradvar")
CONTROL = {phase: (f"{phase}_s",) for phase in PHASES}  # phase -> columns that are added up, seconds
LANGUAGE = {
    "collect": ("time/generate_s", "time/score_s", "time/logprobs_s"),
    **{phase: (f"time/{phase}_s",) for phase in PHASES[1:3]},
}
TINY = "random Qwen2 of 0.15 M parameters"
MODELS = {"tiny": TINY, "smollm2": "SmolLM2-135M, LoRA, 32 tokens", "smollm2_256": "SmolLM2-135M, LoRA, 256 tokens"}
MODELS |= {f"tiny_{t}x{g}": f"{TINY}, {t} tokens, groups of {g}" for t in (32, 128, 512) for g in (4, 16, 32)}
MODELS |= {f"prompt_{g}": f"{TINY}, long prompts, 32 tokens, groups of {g}" for g in (4, 16)}


class BenchFile(NamedTuple):
    """Layout of a measurement file."""

    name: str
    speed: str  # column with units per CPU-second
    unit: str
    keys: Mapping[str, type]  # columns that identify a case
    phases: Mapping[str, tuple[str, ...]]


FILES = (
    BenchFile("control", "steps_per_cpu_s", "environment steps", {"env_id": str, "num_envs": int}, CONTROL),
    BenchFile("language", "tokens_per_cpu_s", "tokens", {"case": str}, LANGUAGE),
)


@dataclass
class Measured:
    """Measurements of one contestant in a case: round -> value."""

    speed: dict[int, float] = field(default_factory=dict)  # units per CPU-second
    peak: dict[int, float] = field(default_factory=dict)  # resident MiB
    seconds: dict[str, list[float]] = field(default_factory=dict)  # phase -> seconds in each round; only for ours

    @property
    def shares(self) -> dict[str, float]:
        """Phase -> percentage of the total, from medians over rounds."""
        medians = {phase: float(np.median(values)) for phase, values in self.seconds.items()}
        total = sum(medians.values())
        return {phase: 100 * value / total for phase, value in medians.items()} if total > 0 else {}


@dataclass(frozen=True)
class Case:
    """A workload that is the same for all contestants; ours with another gate is called "ours, <gate>"."""

    name: str
    unit: str
    contestants: dict[str, Measured] = field(default_factory=dict)


def read(results_dir: Path) -> tuple[list[Case], list[Problem]]:
    """Read the cases in the existing files, in the benchmarks' order, with a problem for each unusable file."""
    cases: dict[str, Case] = {}
    problems = []
    for kind in FILES:
        path = results_dir / FOLDER / f"{kind.name}.parquet"
        phases = dict.fromkeys((column for columns in kind.phases.values() for column in columns), float)
        columns = {"round": int, "contestant": str, kind.speed: float, "peak_rss_mib": float, **kind.keys, **phases}
        try:
            records = read_records(path, columns)
            if len(records) > MAX_ROWS or not all(0 < record[kind.speed] < math.inf for record in records):
                raise Unreadable(f"{path.name} has too many rows, or a {kind.speed} that is not above 0")
        except Missing:
            continue
        except Unreadable as error:
            problems.append(Problem(f"{FOLDER}/{path.name}", f"{error}; measure again with `{command(kind, results_dir)}`"))
            continue
        for record in records:
            _add(cases, kind, record)
    return list(cases.values()), problems


def command(kind: BenchFile, results_dir: Path) -> str:
    """The shell command that measures a file again."""
    return f"python benchmarks/{kind.name}.py 5 {shell_word(f'{results_dir / FOLDER / kind.name}.parquet')}"


def _add(cases: dict[str, Case], kind: BenchFile, record: Mapping[str, Any]) -> None:
    who, _, choice = printable(record["contestant"], MAX_NAME).partition("-")
    if kind.name == "control":
        many = f"{record['num_envs']} environment{'s' if record['num_envs'] > 1 else ''}"
        name = f"{'TRPO' if choice == 'trpo' else 'PPO'}, {printable(record['env_id'], MAX_NAME)}, {many}"
    else:
        name = f"GRPO, {MODELS.get(record['case'], printable(record['case'], MAX_NAME))}"
    case = cases.setdefault(name, Case(name, kind.unit))
    one = case.contestants.setdefault(who if choice in ("", "trpo") else f"{who}, {choice}", Measured())
    one.speed[record["round"]], one.peak[record["round"]] = record[kind.speed], record["peak_rss_mib"]
    if who == OURS:
        for phase, columns in kind.phases.items():
            one.seconds.setdefault(phase, []).append(sum(record[column] for column in columns))


def median_and_range(values: Sequence[float]) -> Interval:
    """Median over rounds with the smallest and largest value."""
    return Interval(float(np.median(values)), min(values), max(values)) if values else Interval(NAN, NAN, NAN)


def ratio(case: Case, name: str, first: str = OURS) -> Interval:
    """Speed of the first contestant divided by another's in each round; nan for itself or without common rounds."""
    ours, one = case.contestants.get(first, Measured()), case.contestants[name]
    rounds = sorted(ours.speed.keys() & one.speed.keys()) if name != first else []
    return median_and_range([ours.speed[i] / one.speed[i] for i in rounds])


def speed_table(cases: Sequence[Case]) -> Table:
    """One row per case and contestant."""
    rows = []
    for case in cases:
        for name, one in case.contestants.items():
            row: dict[str, Cell] = {"case": case.name, "contestant": name, "n": len(one.speed), "unit": case.unit}
            row |= interval_cells("speed", median_and_range(list(one.speed.values())))
            row |= interval_cells("ratio", ratio(case, name))
            row["peak"] = median_and_range(list(one.peak.values())).value
            shares = one.shares
            rows.append(row | {phase: shares.get(phase, NAN) for phase in PHASES})
    columns = (
        word("case", "case"),
        word("contestant", "contestant"),
        number("n", "rounds"),
        word("unit", "unit"),
        estimate("speed", "per CPU-second", 4),
        estimate("ratio", "ours / it"),
        number("peak", "peak, MiB"),
    )
    caption = (
        "The same work in fresh processes on one thread, contestants interleaved. Per CPU-second: median over rounds, brackets: "
        "smallest to largest. Ours / it: speed of ours over the contestant's, round by round; above 1 ours is faster. "
        "'ours, <gate>' is ours with another gate. Peak: largest resident memory of the process. The csv has the phases' shares."
    )
    return Table("speed", "Speed", caption, columns, tuple(rows), "case")
