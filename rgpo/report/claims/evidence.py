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
from rgpo.report.tables.matched import Path, path_through_ends, paths_of
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
    over: list[str] = field(default_factory=list)  # keys whose values a seed's runs differ in; they are one path of a dominance
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
            chosen, why, note = _one_variant(of_arm, named.seeds, named.over)
            samples[task][arm] = Sample(tuple(chosen), over=bool(named.over))
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
    of_code = not named.code or any(version.startswith(tuple(named.code)) for version in run.versions)
    of_experiment = run.experiment == named.experiment == run.config.get("name")
    return of_experiment and of_budget and of_code and 1 <= run.seed <= named.seeds and matches(run, named.config)


def _one_variant(runs: Sequence[Run], num_seeds: int, over: Sequence[str]) -> tuple[list[Run], str, str]:
    """The runs of the only configuration and code version that has every seed, else of the only one that there is.

    Returns them by seed, a clause about what is lacking or "", and a clause about other variants that were left out or "".
    """
    variants: dict[Hashable, dict[int, dict[Hashable, Run]]] = defaultdict(lambda: defaultdict(dict))
    for run in sorted(runs, key=lambda r: r.run_id):
        if run.complete:  # a doubled seed counts once: the first by name
            place = tuple(repr(run.config.get(key)) for key in over)
            variants[run.version, identity(run, over)][run.seed].setdefault(place, run)
    kept = [by_seed for by_seed in variants.values() if len(by_seed) == num_seeds] or list(variants.values())
    if not kept:
        return [], "unfinished" if runs else "not run", ""
    if len(kept) > 1:
        firsts = [next(iter(next(iter(by_seed.values())).values())) for by_seed in kept]
        keys = distinguishing_keys(firsts)
        labels = " and ".join(sorted({short_label(run, keys) or f"code {run.version}" for run in firsts}))
        return [], f"run in several variants ({labels}), of which the claim names none", ""
    (by_seed,) = kept
    places = {place for by_place in by_seed.values() for place in by_place}
    absent = [str(seed) for seed in range(1, num_seeds + 1) if set(by_seed.get(seed, ())) != places]
    lost = (
        f"without {'all of ' if over else ''}seed{'s' if len(absent) > 1 else ''} {', '.join(absent)} of {num_seeds}"
        if absent
        else ""
    )
    others = len(variants) - 1
    note = f"{others} other variant{'s' if others > 1 else ''} left out" if others else ""
    return [run for seed in sorted(by_seed) for _, run in sorted(by_seed[seed].items(), key=repr)], lost, note
