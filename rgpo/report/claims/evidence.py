"""The runs that a claim names: its experiment, budget, settings, seeds and code version; no other run can change a verdict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from rgpo.report.claims.external import Anchor
from rgpo.report.read.groups import distinguishing_keys, identity, short_label
from rgpo.report.read.run import Run
from rgpo.report.stats.bootstrap import Floats
from rgpo.report.stats.independent import Summary, summarize
from rgpo.runtime.schema import AXES

CHOICES = ("algo", "scale", "sampler", *AXES)  # words of an arm that are options of conf/: gate, not choices.gate


@dataclass(frozen=True)
class Named:
    """The evidence of a claim by name; seeds are 1 to n, and the budget is exact: other seeds and lengths are not part of it."""

    experiment: str
    tasks: list[str]
    seeds: int
    steps: int | None = None  # total_env_steps
    iterations: int | None = None
    config: dict[str, object] = field(default_factory=dict)  # dotted key -> value that every run of the claim has
    code: list[str] | None = None  # beginnings of the digests (or commits) that count as one version; null: any single one


@dataclass(frozen=True)
class Sample:
    """An arm in one task: its runs, one per seed, or a published number."""

    runs: tuple[Run, ...] = ()
    anchor: Anchor | None = None

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
        return self.anchor.n if self.anchor is not None else len(self.runs)


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


def select(
    named: Named, arms: Mapping[str, Mapping[str, object]], anchors: Mapping[tuple[str, str], Anchor], runs: Sequence[Run]
) -> Selection:
    """The samples of every arm in every task of a claim.

    anchors: (arm, task) -> published number, of arms that are not run.
    """
    inside = [run for run in runs if _is_named(named, run)]
    samples: dict[str, dict[str, Sample]] = {task: {} for task in named.tasks}
    lacking: list[Lack] = []
    notes: list[str] = []
    for task in named.tasks:
        for arm, settings in arms.items():
            if "external" in settings:
                anchor = anchors.get((arm, task))
                samples[task][arm] = Sample(anchor=anchor)
                lacking += [] if anchor else [Lack(arm, task, f"{settings['external']} has no number")]
                continue
            of_arm = [run for run in inside if run.task == task and matches(run, settings)]
            chosen, why, note = _one_variant(of_arm, named.seeds)
            samples[task][arm] = Sample(tuple(chosen))
            lacking += [Lack(arm, task, why)] if why else []
            notes += [f"{task}, {arm}: {note}"] if note else []
    chosen = [run for by_arm in samples.values() for sample in by_arm.values() for run in sample.runs]
    versions = sorted({run.version for run in chosen})
    if len(versions) > 1 and not named.code:
        why = f"runs of several code versions ({', '.join(versions)}), of which evidence.code names none"
        lacking += [Lack("the evidence", task, why) for task in named.tasks]
    return Selection(samples, tuple(lacking), tuple(notes))


def matches(run: Run, settings: Mapping[str, object]) -> bool:
    """True if the run has every value of an arm: options by their group's name, other keys dotted."""
    return all(run.config.get(f"choices.{key}" if key in CHOICES else key) == value for key, value in settings.items())


def _is_named(named: Named, run: Run) -> bool:
    """True if the run is part of the experiment, by the name in its own configuration and by its folder."""
    of_budget = (named.steps is None or run.config.get("total_env_steps") == named.steps) and (
        named.iterations is None or run.num_iterations == named.iterations
    )
    of_code = not named.code or any(run.version.startswith(version) for version in named.code)
    of_experiment = run.experiment == named.experiment == run.config.get("name")
    return of_experiment and of_budget and of_code and 1 <= run.seed <= named.seeds and matches(run, named.config)


def _one_variant(runs: Sequence[Run], num_seeds: int) -> tuple[list[Run], str, str]:
    """The runs of the only configuration and code version that has every seed, else of the only one that there is.

    Returns them by seed, a clause about what is lacking or "", and a clause about other variants that were left out or "".
    """
    variants: dict[Hashable, dict[int, Run]] = defaultdict(dict)
    for run in sorted(runs, key=lambda r: r.run_id):
        if run.complete:  # a doubled seed counts once: the first by name
            variants[run.version, identity(run)].setdefault(run.seed, run)
    kept = [by_seed for by_seed in variants.values() if len(by_seed) == num_seeds] or list(variants.values())
    if not kept:
        return [], "unfinished" if runs else "not run", ""
    if len(kept) > 1:
        firsts = [next(iter(by_seed.values())) for by_seed in kept]
        keys = distinguishing_keys(firsts)
        labels = " and ".join(sorted({short_label(run, keys) or f"code {run.version}" for run in firsts}))
        return [], f"run in several variants ({labels}), of which the claim names none", ""
    (by_seed,) = kept
    absent = [str(seed) for seed in range(1, num_seeds + 1) if seed not in by_seed]
    lost = f"without seed{'s' if len(absent) > 1 else ''} {', '.join(absent)} of {num_seeds}" if absent else ""
    others = len(variants) - 1
    note = f"{others} other variant{'s' if others > 1 else ''} left out" if others else ""
    return [by_seed[seed] for seed in sorted(by_seed)], lost, note
