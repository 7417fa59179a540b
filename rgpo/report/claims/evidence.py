"""A claim's evidence: how it is named, the samples that were found (runs or published numbers), and what is missing."""

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
EXTERNAL = "external"  # key of an arm that is a published number


@dataclass(frozen=True)
class Named:
    """A claim's evidence by name: exactly the seeds 1 to n and the given length; runs with others are ignored."""

    experiment: str
    tasks: list[str]
    seeds: int
    steps: int | None = None  # total_env_steps
    iterations: int | None = None
    config: dict[str, object] = field(default_factory=dict)  # dotted key -> required value in every run of the claim
    over: list[str] = field(default_factory=list)  # keys that vary between a seed's runs, which form one path (rule dominance)
    differ: list[str] = field(
        default_factory=list
    )  # keys, other than those they name, in which treatment and baseline may differ
    code: list[str] | None = None  # prefixes of digests or commits accepted as one version; null: any single one


@dataclass(frozen=True)
class Sample:
    """An arm in one task: its runs, one per seed, or a published number."""

    runs: tuple[Run, ...] = ()
    anchor: Anchor | None = None
    over: bool = False  # True if a seed has several runs

    def paths(self, x: str, y: str) -> list[Path]:
        """One path (P,) per seed: through its run's evaluations or, with ``over``, through the ends of its runs."""
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
        """Mean, standard deviation and number of runs, computed or as published."""
        if self.anchor is not None:
            return self.anchor.summary
        return summarize(self.values(column, statistic))

    @property
    def n(self) -> int:
        return self.anchor.n if self.anchor is not None else len({run.seed for run in self.runs})


class Lack(NamedTuple):
    """Evidence that an arm lacks in a task."""

    arm: str
    task: str
    why: str


@dataclass(frozen=True)
class Selection:
    """task -> arm -> sample, all missing or ambiguous evidence, and clauses about runs that could be ignored."""

    samples: Mapping[str, Mapping[str, Sample]]
    lacking: tuple[Lack, ...]
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Run]:
        """All runs in the samples."""
        return [run for arms in self.samples.values() for sample in arms.values() for run in sample.runs]
