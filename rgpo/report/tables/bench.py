"""How fast ours is beside others on the same work: results_dir/bench/*.parquet, one row a contestant and round.

The benchmarks write them (benchmarks/control.py, benchmarks/language.py). Rounds pair the contestants of a case: what else the
machine did was much the same within one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rgpo.report.read.load import Problem
from rgpo.report.read.rows import Unreadable, read_table
from rgpo.report.tables.overall import Interval
from rgpo.report.tables.table import Table, estimate, number, word

FOLDER, OURS, NAN = "bench", "ours", float("nan")
PHASES = ("collect", "update", "diagnostics", "gradvar")
CONTROL = {phase: (f"{phase}_s",) for phase in PHASES}  # phase -> columns that make it up, seconds
LANGUAGE = {
    "collect": ("time/generate_s", "time/score_s", "time/logprobs_s"),
    **{phase: (f"time/{phase}_s",) for phase in PHASES[1:3]},
}
MODELS = {"tiny": "random Qwen2 of 0.15 M parameters", "smollm2": "SmolLM2-135M, LoRA"}


class Kind(NamedTuple):
    """What one file holds."""

    file: str
    speed: str  # column, units per CPU-second
    unit: str
    keys: tuple[str, ...]  # columns that tell the cases apart
    phases: Mapping[str, tuple[str, ...]]


KINDS = (
    Kind("control", "steps_per_cpu_s", "environment steps", ("env_id", "num_envs"), CONTROL),
    Kind("language", "tokens_per_cpu_s", "tokens", ("case",), LANGUAGE),
)


@dataclass
class Measured:
    """One contestant of a case: round -> value."""

    speed: dict[int, float] = field(default_factory=dict)  # units per CPU-second
    peak: dict[int, float] = field(default_factory=dict)  # resident MiB
    seconds: dict[str, list[float]] = field(default_factory=dict)  # phase -> seconds of each round; nothing for rivals

    @property
    def shares(self) -> dict[str, float]:
        """Phase -> per cent of the phases' time, each the median over rounds."""
        medians = {phase: float(np.median(values)) for phase, values in self.seconds.items()}
        return {phase: 100 * value / sum(medians.values()) for phase, value in medians.items()}


@dataclass(frozen=True)
class Case:
    """The same work for every contestant; ours with another gate is "ours, <gate>"."""

    name: str
    unit: str
    contestants: dict[str, Measured] = field(default_factory=dict)


def read(results_dir: Path) -> tuple[list[Case], list[Problem]]:
    """Cases of the files that are there, in the benchmarks' order; a sentence for a file that cannot be used."""
    cases: dict[str, Case] = {}
    problems = []
    for kind in KINDS:
        path = results_dir / FOLDER / f"{kind.file}.parquet"
        phases = [column for columns in kind.phases.values() for column in columns]
        try:
            columns = read_table(path, ["round", "contestant", kind.speed, "peak_rss_mib", *kind.keys, *phases])
        except FileNotFoundError:
            continue
        except Unreadable as error:
            problems.append(Problem(f"{FOLDER}/{path.name}", f"{error}; make it again with `{making(kind, results_dir)}`"))
            continue
        for values in zip(*columns.values(), strict=True):
            _add(cases, kind, dict(zip(columns, values, strict=True)))
    return list(cases.values()), problems


def making(kind: Kind, results_dir: Path) -> str:
    """The shell line that measures a kind again."""
    return f"python benchmarks/{kind.file}.py 5 {results_dir / FOLDER / kind.file}.parquet"


def _add(cases: dict[str, Case], kind: Kind, row: Mapping[str, Any]) -> None:
    who, _, choice = str(row["contestant"]).partition("-")
    if kind.file == "control":
        many = f"{row['num_envs']} environment{'s' if row['num_envs'] > 1 else ''}"
        name = f"{'TRPO' if choice == 'trpo' else 'PPO'}, {row['env_id']}, {many}"
    else:
        name = f"GRPO, {MODELS.get(row['case'], row['case'])}"
    case = cases.setdefault(name, Case(name, kind.unit))
    one = case.contestants.setdefault(who if choice in ("", "trpo") else f"{who}, {choice}", Measured())
    one.speed[row["round"]], one.peak[row["round"]] = row[kind.speed], row["peak_rss_mib"]
    if who == OURS:
        for phase, columns in kind.phases.items():
            one.seconds.setdefault(phase, []).append(sum(row[column] for column in columns))


def middle(values: Sequence[float]) -> Interval:
    """Median of the rounds' values with the least and the most."""
    return Interval(float(np.median(values)), min(values), max(values)) if values else Interval(NAN, NAN, NAN)


def ratio(case: Case, name: str) -> Interval:
    """Speed of ours over a contestant's, round by round; nan for ours itself and where they have no round in common."""
    ours, one = case.contestants.get(OURS, Measured()), case.contestants[name]
    rounds = sorted(ours.speed.keys() & one.speed.keys()) if name != OURS else []
    return middle([ours.speed[i] / one.speed[i] for i in rounds])


def table(cases: Sequence[Case]) -> Table:
    """One row a contestant of a case."""
    rows = []
    for case in cases:
        for name, one in case.contestants.items():
            row: dict[str, Any] = {"case": case.name, "contestant": name, "n": len(one.speed), "unit": case.unit}
            for key, found in (("speed", middle(list(one.speed.values()))), ("ratio", ratio(case, name))):
                row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
            shares = one.shares
            rows.append(row | {"peak": middle(list(one.peak.values())).value} | {p: shares.get(p, NAN) for p in PHASES})
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
        "the least and the most of them. Ours / it: speed of ours over the contestant's, round by round; above 1 ours is faster. "
        "'ours, <gate>' is ours with another gate. Peak: largest resident memory of the process. The csv has the phases' shares."
    )
    return Table("speed", "Speed", caption, columns, tuple(rows), "case")
