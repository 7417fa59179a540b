"""The evidence of a claim by name, and what was found of it: samples of runs or published numbers, and what is lacking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rgpo.report.claims.external import Anchor
from rgpo.report.read.run import Run
from rgpo.report.stats.bootstrap import Floats
from rgpo.report.stats.independent import Summary, summarize
from rgpo.report.tables.matched import Path, path_through_ends, paths_of

TREATMENT, BASELINE, NULL = "treatment", "baseline", "null"  # the arms of a claim
EXTERNAL = "external"  # the word of an arm that is a published number


@dataclass(frozen=True)
class Named:
    """The evidence of a claim by name; seeds are 1 to n, and the budget is exact: other seeds and lengths are not part of it."""

    experiment: str
    tasks: list[str]
    seeds: int
    steps: int | None = None  # total_env_steps
    iterations: int | None = None
    config: dict[str, object] = field(default_factory=dict)  # dotted key -> value that every run of the claim has
    over: list[str] = field(default_factory=list)  # keys whose values a seed's runs differ in; they are one path of a dominance
    differ: list[str] = field(
        default_factory=list
    )  # keys in which treatment and baseline may differ besides those that they name
    code: list[str] | None = None  # beginnings of the digests (or commits) that count as one version; null: any single one


@dataclass(frozen=True)
class Sample:
    """An arm in one task: its runs, one per seed, or a published number."""

    runs: tuple[Run, ...] = ()
    anchor: Anchor | None = None
    over: bool = False  # whether a seed has several runs

    def paths(self, x: str, y: str) -> list[Path]:
        """One path (P,) per seed: through the run's evaluations, or through the ends of its runs."""
        if not self.over:
            return paths_of(self.runs, x, y)
        seeds = sorted({run.seed for run in self.runs})
        found = (path_through_ends([run for run in self.runs if run.seed == seed], x, y) for seed in seeds)
        return [path for path in found if path is not None]

    def values(self, column: str, statistic: str) -> Floats:
        """One number (S,) per run that measured it."""
        found = np.array([run.number(column, statistic) for run in self.runs], dtype=np.float64)
        return found[np.isfinite(found)]

    def summary(self, column: str, statistic: str) -> Summary:
        """Mean, spread and size over the runs, or as published."""
        if self.anchor is not None:
            return self.anchor.summary
        return summarize(self.values(column, statistic))

    @property
    def n(self) -> int:
        return self.anchor.n if self.anchor is not None else len({run.seed for run in self.runs})


class Lack(NamedTuple):
    """Something that an arm does not have in a task."""

    arm: str
    task: str
    why: str


@dataclass(frozen=True)
class Selection:
    """task -> arm -> sample, whatever is missing or ambiguous, and clauses about runs that were left out without harm."""

    samples: Mapping[str, Mapping[str, Sample]]
    lacking: tuple[Lack, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        """Every run that counts."""
        return [run for arms in self.samples.values() for sample in arms.values() for run in sample.runs]
