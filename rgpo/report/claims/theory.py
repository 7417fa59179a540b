"""Rules that do not judge training runs: statements decided by the theory's experiments, and CPU time in interleaved rounds."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, get_type_hints

import numpy as np

from rgpo.errors import require
from rgpo.report.claims.rules import FAILS, HOLDS, OPEN, Finding
from rgpo.report.read.rows import read_records
from rgpo.report.read.run import Problem
from rgpo.report.stats.bootstrap import MIN_RUNS, Floats, Interval
from rgpo.report.stats.independent import deciding_size, student, summarize
from rgpo.report.tables.table import between, plain
from rgpo.runtime.code_digest import ALWAYS, digest_of
from rgpo.runtime.reader import Missing, Unreadable, printable, read_json

FOLDER, MADE = "theory", "made.json"  # inside results_dir
REPRODUCED, REFUTED = "reproduced", "not reproduced"  # verdicts in verdicts.parquet


class Decided(NamedTuple):
    """A row of results/theory/verdicts.parquet: a statement of a claim, decided by a theory experiment."""

    claim: str
    setting: str
    measured: float
    verdict: str


class Round(NamedTuple):
    """A row of results/theory/cost_time.parquet: CPU seconds of an update in one of several interleaved rounds."""

    task: str
    algo: str
    round: int
    cpu_s: float


class Made(TypedDict):
    """results/theory/made.json: the code that made the last complete set of tables."""

    commit: str
    code: str  # from theory_digests()
    cost_code: str


@dataclass(frozen=True)
class Theory:
    """Both tables, None if not made. version: the code that made them, and whether it has changed since."""

    decided: Sequence[Decided] | None = None
    rounds: Sequence[Round] | None = None
    version: str = ""
    cost_version: str = ""  # same for the rounds, which also depend on the tasks' policies


@dataclass(frozen=True)
class Statements:
    """A claim holds if all its statements in verdicts.parquet hold."""

    claim: str  # "C1", or "C1 (ours)"
    settings: list[str]  # names of all the claim's statements

    def __post_init__(self) -> None:
        alike = len({*self.settings}) == len(self.settings)
        require(bool(self.settings) and alike, "settings", self.settings, "name each statement of the claim once")

    def sentence(self) -> str:
        return "every statement that it makes holds, each by the rule beside it in docs/theory.md; contradicted if one does not"

    def judge(self, theory: Theory, confidence: float) -> list[Finding]:
        if theory.decided is None:
            return []
        own = [row for row in theory.decided if row.claim == self.claim]
        rows = {row.setting: row for row in own if row.setting in self.settings}
        failing = [row for row in rows.values() if row.verdict == REFUTED]
        held = sum(row.verdict == REPRODUCED for row in rows.values())
        doubts = [f"missing: {setting}" for setting in self.settings if setting not in rows]
        doubts += [f"not among the claim's: {row.setting}" for row in own if row.setting not in self.settings]
        doubts += [f"twice: {setting}" for setting in rows if sum(row.setting == setting for row in own) > 1]
        doubts += [f"without a number: {row.setting}" for row in rows.values() if not math.isfinite(row.measured)]
        text = f"{held} of {len(self.settings)} statements hold"
        text += "".join(f"; not: {row.setting} {plain(row.measured)}" for row in failing) + "".join(
            f"; {doubt}" for doubt in doubts
        )
        return [Finding(OPEN if doubts else FAILS if failing else HOLDS if held == len(rows) else OPEN, text)]


@dataclass(frozen=True)
class CostRatio:
    """The ratio of CPU times per update, taken within each round, so that the machine's load affects both equally."""

    algo: str
    baseline: str
    tasks: list[str]
    at_most: float
    rounds: int  # exact number, counted from 0

    def __post_init__(self) -> None:
        require(MIN_RUNS <= self.rounds <= 10_000, "rounds", self.rounds, f"give {MIN_RUNS} to 10,000")
        require(self.algo != self.baseline, "baseline", self.baseline, "it is algo, too; exchange one")
        require(self.at_most > 0, "at_most", self.at_most, "give a ratio above 0")
        require(bool(self.tasks) and len({*self.tasks}) == len(self.tasks), "tasks", self.tasks, "name each task once")

    def sentence(self) -> str:
        return f"the ratio of CPU times of interleaved rounds is at most {self.at_most:g} in every task, by its interval; " + (
            "contradicted if it is above"
        )

    def judge(self, theory: Theory, confidence: float) -> list[Finding]:
        if theory.rounds is None:
            return []
        return [self._task(task, [row for row in theory.rounds if row.task == task], confidence) for task in self.tasks]

    def _task(self, task: str, rounds: Sequence[Round], confidence: float) -> Finding:
        pairs = Counter((row.round, row.algo) for row in rounds)
        whole = set(pairs) >= {(i, algo) for i in range(self.rounds) for algo in (self.algo, self.baseline)}
        ratios = ratios_of(rounds, self.algo, self.baseline)
        if not whole or len(ratios) != self.rounds or max(pairs.values()) > 1:
            doubled = ", some of them twice" if pairs and max(pairs.values()) > 1 else ""
            return Finding(OPEN, f"{task}: {len(ratios)} of {self.rounds} rounds{doubled}")
        logs = student(summarize(np.log(ratios)), confidence)  # geometric mean, which is symmetric in the two arms
        found = Interval(*(float(np.exp(x)) for x in logs))
        text = f"{task} {plain(found.value)} {between(found.low, found.high)} ({len(ratios)} rounds)"
        if found.high <= self.at_most:
            return Finding(HOLDS, text)
        if found.low > self.at_most:
            return Finding(FAILS, text)
        distance = abs(logs.value - float(np.log(self.at_most)))
        return Finding(OPEN, text, deciding_size(logs, len(ratios), distance, confidence, 1))


def ratios_of(rounds: Sequence[Round], algo: str, baseline: str) -> Floats:
    """Ratio of two algorithms' CPU times for each round that has both."""
    times: dict[int, dict[str, float]] = {}
    for row in rounds:
        times.setdefault(row.round, {}).setdefault(row.algo, row.cpu_s)  # the first one, if a round is repeated
    both: list[Mapping[str, float]] = [
        found for found in times.values() if all(0 < found.get(name, 0) < math.inf for name in (algo, baseline))
    ]
    return np.array([found[algo] / found[baseline] for found in both])


def read_theory(results_dir: Path) -> tuple[Theory, list[Problem]]:
    """Read the theory experiments' tables, if they exist, with a problem for each damaged one."""
    problems: list[Problem] = []
    decided = _read(results_dir, "verdicts.parquet", Decided, problems)
    rounds = _read(results_dir, "cost_time.parquet", Round, problems)
    versions = _versions(results_dir / FOLDER / MADE, problems)
    return Theory(
        None if decided is None else [Decided(**row) for row in decided],
        None if rounds is None else [Round(**row) for row in rounds],
        *versions,
    ), problems


def theory_digests() -> tuple[str, str]:
    """Digests of the code that determines the theory's numbers: core, gates, learning, bandit; and with both kinds of tasks."""
    return digest_of((*ALWAYS, "bandit")), digest_of((*ALWAYS, "bandit", "control", "language"))


def _versions(path: Path, problems: list[Problem]) -> tuple[str, str]:
    """The code that made the tables, from the file that `python -m experiments.theory` writes next to them; "" without it."""
    try:
        made = read_json(path, Made)
        commit, codes = made["commit"], (made["code"], made["cost_code"])
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise Unreadable(f"{path.name}: commit={printable(commit, 60)} is none")
    except Missing:
        return "", ""
    except (Unreadable, KeyError) as error:
        why = f"{path.name} lacks {error}" if isinstance(error, KeyError) else str(error)
        problems.append(Problem(FOLDER, f"{why}; the code of these tables is not known; make them again"))
        return "", ""
    one, other = (
        f"{commit[:10]}: {'unchanged' if code == now else 'changed since'}"
        for code, now in zip(codes, theory_digests(), strict=True)
    )
    return one, other


def _read(results_dir: Path, name: str, kind: type, problems: list[Problem]) -> list[dict[str, Any]] | None:
    try:
        return read_records(results_dir / FOLDER / name, get_type_hints(kind))
    except Missing:
        return None
    except Unreadable as error:
        why = f"{error}; what it decides is left out; make it again with `python -m experiments.theory`"
        problems.append(Problem(FOLDER, why))
        return None
