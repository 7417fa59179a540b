"""A run as the report sees it, and the problems found while reading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rgpo.report.read.columns import RESTARTED
from rgpo.report.read.reduce import Reduced
from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime.code_digest import code_digest
from rgpo.runtime.own_metrics import term_names
from rgpo.runtime.provenance import GateCurve
from rgpo.runtime.schema import Metric


class Problem(NamedTuple):
    """Something that was left out or is incomplete: its place, and the reason in one sentence."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Provenance(NamedTuple):
    """The part of provenance.json that the report shows; empty or "unknown" where the file has nothing."""

    commit: str
    dirty: bool  # uncommitted changes
    code: str  # digest of the code that determines numbers; empty for runs from before there was one
    versions: str
    libraries: Mapping[str, str]  # versions of those that determine numbers
    host: str
    started: str
    command: str
    attempt: int
    gate: str  # with its parameters; empty for an algorithm without
    gate_curve: GateCurve | None  # None for runs from before it was recorded


@dataclass(frozen=True)
class Run:
    """One run, reduced: curves over iterations and the numbers of the tables."""

    experiment: str
    folder: Path
    task: str  # with what makes it another task in parentheses: "qwen_rlhf (embedded)", "hopper (v5)"
    scale: str  # embedded, smollm2, paper; none for control
    algo: str
    seed: int
    config: Mapping[str, object]  # dotted key -> value, with present names
    metrics: Mapping[str, Metric]  # of the run's own config, beyond the packaged ones: declared ones and terms of the reward
    provenance: Provenance
    status: str  # of state.json, or "unknown"
    reason: str
    num_iterations: int
    reached: int  # iterations with a row
    reduced: Reduced

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def where(self) -> str:
        return f"{self.experiment}/{self.run_id}"

    @property
    def version(self) -> str:
        """The code that the run was measured with: its digest, or the commit for runs from before there were digests."""
        commit, changed = self.provenance.commit[:10], "-dirty" if self.provenance.dirty else ""
        return self.provenance.code or (f"{commit}{changed}" if commit else "unknown")

    @property
    def versions(self) -> list[str]:
        """By what a claim may name that code: its version and, unless there were uncommitted changes, its commit."""
        return [self.version, *([self.provenance.commit] if self.provenance.commit and not self.provenance.dirty else [])]

    @property
    def started(self) -> str:
        """When it was started, in ISO format; one that is not known sorts as the last."""
        return self.provenance.started or "9999"

    @property
    def present_code(self) -> str:
        """The digest of the present code for the run's options."""
        choices = {key.removeprefix("choices."): value for key, value in self.config.items() if key.startswith("choices.")}
        return code_digest(choices, str(self.config.get("task._target_", "")))

    @property
    def is_current(self) -> bool:
        """True if the run was measured with the code that determines numbers as it is now."""
        return self.version == self.present_code

    @property
    def planned_steps(self) -> int | None:
        """Environment steps that its configuration sets; num_iterations has precedence over total_env_steps."""
        iterations, steps = self.config.get("num_iterations"), self.config.get("total_env_steps")
        if isinstance(iterations, int):
            size, copies = self.config.get("task.num_steps"), self.config.get("task.num_envs", 1)
            steps = iterations * size * copies if isinstance(size, int) and isinstance(copies, int) else None
        return steps if isinstance(steps, int) else None

    @property
    def complete(self) -> bool:
        """True if the run ended as planned and every iteration has a row."""
        return self.status in ("completed", "unknown") and self.reached >= self.num_iterations

    @property
    def exact(self) -> bool:
        """False if a resume could not restore open episodes, so that the run is not equal to an uninterrupted one bit for bit."""
        return math.isnan(self.number(RESTARTED, "last"))

    @property
    def reward_terms(self) -> list[str]:
        """Names of the terms of the reward; [] for the reward model alone."""
        names = term_names(self.config.get("task.reward"))
        return [name for name in names if f"reward/{name}_mean" in self.metrics]

    def curve(self, column: str) -> Floats:
        """Points (P,) of a column; nan where it was not measured."""
        found = self.reduced.curves.get(column)
        return found if found is not None else np.full(len(self.reduced.curves["iteration"]), np.nan)

    def number(self, column: str, statistic: str) -> float:
        """A number of the tables; nan if the column was never measured."""
        return self.reduced.numbers.get((column, statistic), float("nan"))

    def has(self, column: str) -> bool:
        """True if the column was measured at least once."""
        found = self.reduced.lists.get(column, self.reduced.curves.get(column))
        return found is not None and bool(np.any(~np.isnan(found)))
