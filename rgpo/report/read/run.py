"""A run in the report's representation, and problems found while reading."""

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
    """Something that is incomplete or was left out: where, and why, in one sentence."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Provenance(NamedTuple):
    """The part of provenance.json that the report shows; empty or "unknown" where the file has no entry."""

    commit: str
    dirty: bool  # uncommitted changes
    code: str  # digest of the code that determines numbers; empty for old runs
    versions: str
    libraries: Mapping[str, str]  # versions of libraries that determine numbers
    host: str
    started: str
    command: str
    attempt: int
    gate: str  # the gate with its parameters; empty for an algorithm without one
    gate_curve: GateCurve | None  # None for old runs


@dataclass(frozen=True)
class Run:
    """A run reduced to curves over iterations and numbers for the tables."""

    experiment: str
    folder: Path
    task: str  # with differences from the packaged task in parentheses: "qwen_rlhf (embedded)", "hopper (v5)"
    scale: str  # embedded, smollm2 or paper; none for control
    algo: str
    seed: int
    config: Mapping[str, object]  # dotted key -> value, with current names
    metrics: Mapping[str, Metric]  # the run's own metrics: declared ones and reward terms
    provenance: Provenance
    status: str  # from state.json, or "unknown"
    reason: str
    num_iterations: int
    reached: int  # number of iterations with a row
    reduced: Reduced

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def where(self) -> str:
        return f"{self.experiment}/{self.run_id}"

    @property
    def version(self) -> str:
        """The code with which the run was measured: its digest, or the commit for runs older than digests."""
        commit, changed = self.provenance.commit[:10], "-dirty" if self.provenance.dirty else ""
        return self.provenance.code or (f"{commit}{changed}" if commit else "unknown")

    @property
    def versions(self) -> list[str]:
        """Names by which a claim may refer to that code: its version and, unless there were uncommitted changes, its commit."""
        return [self.version, *([self.provenance.commit] if self.provenance.commit and not self.provenance.dirty else [])]

    @property
    def started(self) -> str:
        """The start time in ISO format; if unknown, a text that sorts last."""
        return self.provenance.started or "9999"

    @property
    def present_code(self) -> str:
        """The digest of the current code for the run's options."""
        choices = {key.removeprefix("choices."): value for key, value in self.config.items() if key.startswith("choices.")}
        return code_digest(choices, str(self.config.get("task._target_", "")))

    @property
    def is_current(self) -> bool:
        """True if the code that determines numbers has not changed since the run."""
        return self.version == self.present_code

    @property
    def planned_steps(self) -> int | None:
        """Environment steps according to the configuration; num_iterations takes precedence over total_env_steps."""
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
        """False if a resume could not restore open episodes, so that the run differs from an uninterrupted one."""
        return math.isnan(self.number(RESTARTED, "last"))

    @property
    def reward_terms(self) -> list[str]:
        """Names of the reward terms; [] if there is only the reward model."""
        names = term_names(self.config.get("task.reward"))
        return [name for name in names if f"reward/{name}_mean" in self.metrics]

    def curve(self, column: str) -> Floats:
        """A column's points (P,); nan where it was not measured."""
        found = self.reduced.curves.get(column)
        return found if found is not None else np.full(len(self.reduced.curves["iteration"]), np.nan)

    def path(self, column: str) -> Floats:
        """A column's points (P,) at the resolution of all paths; nan where it was not measured."""
        found = self.reduced.paths.get(column)
        return found if found is not None else np.full(len(self.reduced.paths["iteration"]), np.nan)

    def number(self, column: str, statistic: str) -> float:
        """A statistic of a column; nan if the column was never measured."""
        return self.reduced.numbers.get((column, statistic), float("nan"))

    def has(self, column: str) -> bool:
        """True if the column was measured at least once."""
        found = self.reduced.lists.get(column, self.reduced.curves.get(column))
        return found is not None and bool(np.any(~np.isnan(found)))
