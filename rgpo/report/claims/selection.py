"""Selection of a claim's runs: only those that it names can affect the verdict, and anything in doubt counts as missing.

An arm rarely names every setting. If the runs that match it have several configurations, the one that counts is the one that
agrees with the other arms in every setting that distinguishes them; if none or several agree, the claim must name the setting.
The number of seeds plays no role in this choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rgpo.report.claims.evidence import BASELINE, EXTERNAL, NULL, TREATMENT, Lack, Named, Sample, Selection
from rgpo.report.claims.external import Anchor
from rgpo.report.read.groups import distinguishing_keys, identifies, identity, short_label
from rgpo.report.read.run import Run
from rgpo.runtime.schema import AXES

CHOICES = ("algo", "scale", "sampler", *AXES)  # keys of an arm that are options in conf/: gate instead of choices.gate
MAX_SHOWN = 3  # most settings listed in a clause
Arms = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class _Variant:
    """Complete runs with the same configuration and code: seed -> values of the keys `over` -> identical runs, earliest first."""

    runs: Mapping[int, Mapping[Hashable, Sequence[Run]]]

    @property
    def first(self) -> Run:
        return next(iter(next(iter(self.runs.values())).values()))[0]

    @property
    def chosen(self) -> tuple[Run, ...]:
        """One run per seed and values of `over`."""
        return tuple(
            alike[0] for seed in sorted(self.runs) for _, alike in sorted(self.runs[seed].items(), key=lambda item: repr(item[0]))
        )

    def lost(self, num_seeds: int, over: Sequence[str]) -> str:
        """A clause about seeds with missing runs, or ""."""
        places = {place for by_place in self.runs.values() for place in by_place}
        absent = [str(seed) for seed in range(1, num_seeds + 1) if set(self.runs.get(seed, ())) != places]
        what = f"{'all of ' if over else ''}seed{'s' if len(absent) > 1 else ''} {', '.join(absent)} of {num_seeds}"
        return f"without {what}" if absent else ""

    def doubled(self) -> str:
        """A clause about seeds that were run more than once, or ""."""
        seeds = [str(seed) for seed in sorted(self.runs) if any(len(alike) > 1 for alike in self.runs[seed].values())]
        one = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)} {'were' if len(seeds) > 1 else 'was'}"
        return f"{one} run more than once, of which the earliest counts" if seeds else ""


class _Choice(NamedTuple):
    """The variant that counts for an arm in a task, or None with the reason, and a clause about other variants."""

    variant: _Variant | None
    why: str = ""
    note: str = ""


def select(named: Named, arms: Arms, anchors: Mapping[tuple[str, str], Anchor], runs: Sequence[Run]) -> Selection:
    """Select the samples of every arm in every task of a claim.

    anchors: (arm, task) -> published number, for arms that are not runs.
    """
    inside = [run for run in runs if _is_of(named, run) and all(holds(run) for _, holds in _conditions(named))]
    samples: dict[str, dict[str, Sample]] = {task: {} for task in named.tasks}
    lacking: list[Lack] = []
    notes: list[str] = []
    for task in named.tasks:
        here = [run for run in inside if run.task == task]
        fits = {
            arm: [] if _unknown(settings, here) else [run for run in here if matches(run, settings)]
            for arm, settings in arms.items()
        }
        variants = {arm: _variants(found, named.over) for arm, found in fits.items() if EXTERNAL not in arms[arm]}
        for arm, settings in arms.items():
            if EXTERNAL in settings:
                anchor = anchors.get((arm, task))
                samples[task][arm] = Sample(anchor=anchor)
                why = "has no usable number" if anchor is None else anchor.why_not
                lacking += [Lack(arm, task, f"{settings[EXTERNAL]} {why}")] if why else []
                continue
            choice = _choose(variants[arm], [other for name, found in variants.items() if name != arm for other in found])
            why = choice.why or _why_not(fits[arm], settings, here)
            found = choice.variant
            samples[task][arm] = Sample(found.chosen if found else (), over=bool(named.over))
            why = found.lost(named.seeds, named.over) if found else why
            lacking += [Lack(arm, task, why)] if why else []
            clauses = (choice.note, *(_notes(found, fits[arm]) if found else ()))
            notes += [f"{task}, {arm}: {clause}" for clause in filter(None, clauses)]
        for arm, other in ((TREATMENT, BASELINE), (NULL, BASELINE if BASELINE in arms else TREATMENT)):
            lacking += [Lack(arm, task, why) for why in _unmatched(samples[task], arm, other, arms, named)]
        lacking += [Lack(who, task, why) for who, why in _shared(samples[task])]
    chosen = [run for by_arm in samples.values() for sample in by_arm.values() for run in sample.runs]
    lacking += [Lack("the evidence", task, why) for why in _mixed(chosen, named) for task in named.tasks]
    return Selection(samples, tuple(lacking), tuple(notes))


def _notes(variant: _Variant, fitting: Sequence[Run]) -> list[str]:
    """Clauses about an arm's runs for readers of the verdict."""
    chosen = variant.chosen
    ids = {identity(run) for run in chosen}
    begun = [run for run in fitting if not run.complete and identity(run) in ids]
    of_seeds = {
        "begun once more and not finished": {run.seed for run in begun if run.seed in variant.runs},
        "resumed with fresh episodes": {run.seed for run in chosen if not run.exact},
        "without a state.json": {run.seed for run in chosen if run.status == "unknown"},
    }
    return [
        variant.doubled(),
        *(f"seed {', '.join(map(str, sorted(seeds)))} {what}" for what, seeds in of_seeds.items() if seeds),
    ]


def matches(run: Run, settings: Mapping[str, object]) -> bool:
    """True if the run has all values of an arm; options are named by their group, other settings by dotted keys."""
    return all(run.config.get(_key(key)) == value for key, value in settings.items())


def why_none(named: Named, runs: Sequence[Run]) -> str:
    """Why no run counts: the first of the claim's conditions that no run of its experiment meets."""
    left = [run for run in runs if _is_of(named, run)]
    if not left:
        return f"no finished run of experiment {named.experiment}"
    for what, holds in _conditions(named):
        left = [run for run in left if holds(run)]
        if not left:
            return f"no run of experiment {named.experiment} {what}"
    return f"no finished run of experiment {named.experiment} fits an arm"


def _is_of(named: Named, run: Run) -> bool:
    """True if the run belongs to the experiment according to both its configuration and its folder."""
    return run.experiment == named.experiment == run.config.get("name")


def _conditions(named: Named) -> list[tuple[str, Callable[[Run], bool]]]:
    """The conditions under which a run of the experiment counts, as text and as a function."""

    def of_length(run: Run) -> bool:
        return named.steps in (None, run.planned_steps) and named.iterations in (None, run.num_iterations)

    def of_code(run: Run) -> bool:
        return not named.code or any(version.startswith(tuple(named.code)) for version in run.versions)

    length = f"{named.steps:,} steps" if named.steps is not None else f"{named.iterations:,} iterations"
    settings = ", ".join(f"{key}={value}" for key, value in named.config.items())
    return [
        (f"is of task {' or '.join(named.tasks)}", lambda run: run.task in named.tasks),
        (f"has {length}", of_length),
        (f"has a seed from 1 to {named.seeds}", lambda run: 1 <= run.seed <= named.seeds),
        (f"is of code {' or '.join(named.code or ())}", of_code),
        (f"has {settings}", lambda run: {*named.config} <= {*run.config} and matches(run, named.config)),
    ]


def _key(word: str) -> str:
    return f"choices.{word}" if word in CHOICES else word


def _variants(runs: Sequence[Run], over: Sequence[str]) -> list[_Variant]:
    """Group complete runs by configuration and code version."""
    found: dict[Hashable, dict[int, dict[Hashable, list[Run]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in sorted(runs, key=lambda r: (r.started, r.run_id)):
        if run.complete:
            place = tuple(repr(run.config.get(key)) for key in over)
            found[run.version, identity(run, over)][run.seed][place].append(run)
    return [_Variant(by_seed) for by_seed in found.values()]


def _choose(variants: Sequence[_Variant], others: Sequence[_Variant]) -> _Choice:
    """The only variant, or the only one that agrees with the other arms in all settings that differ between variants."""
    if not variants:
        return _Choice(None)
    firsts = [variant.first for variant in variants]
    keys = [key for key in {key for run in firsts for key in run.config} if identifies(key)]
    keys = [key for key in keys if len({repr(run.config.get(key)) for run in firsts}) > 1]
    fitting = [variant for variant in variants if all(_agrees(variant.first, key, others) for key in keys)]
    if len(fitting) == 1:
        num_others = len(variants) - 1
        note = f"{num_others} other variant{'s' if num_others > 1 else ''} left out" if num_others else ""
        return _Choice(fitting[0], note=note)
    names = distinguishing_keys(firsts)
    labels = " and ".join(sorted({short_label(run, names) or f"code {run.version}" for run in firsts}))
    return _Choice(None, f"run in several variants ({labels}), of which the claim names none")


def _agrees(run: Run, key: str, others: Sequence[_Variant]) -> bool:
    """False if the other arms, with the same option if the key belongs to one, agree on a value that is not this run's."""
    option = f"choices.{key.partition('.')[0]}"
    alike = (other.first.config for other in others if other.first.config.get(option) == run.config.get(option))
    values = {repr(config[key]) for config in alike if key in config}
    return len(values) != 1 or repr(run.config.get(key)) in values


def _why_not(fitting: Sequence[Run], settings: Mapping[str, object], here: Sequence[Run]) -> str:
    if unknown := _unknown(settings, here):
        return f"not run, since no run has a setting {unknown[0]}"
    return "unfinished" if fitting else "not run"


def _unknown(settings: Mapping[str, object], here: Sequence[Run]) -> list[str]:
    """Settings that are in no run's config, for which null would match every run."""
    return [key for key in settings if here and not any(_key(key) in run.config for run in here)]


def _unmatched(samples: Mapping[str, Sample], one: str, other: str, arms: Arms, named: Named) -> list[str]:
    """A clause if two arms differ in settings that are named neither by them nor by `differ`.

    Keys of an option (gate.sharpness) may differ if it does. Naming an algorithm names all its options, but not their values.
    """
    sides = [samples.get(name, Sample()).runs for name in (one, other)]
    if not all(sides):
        return []
    left, right = (runs[0].config for runs in sides)
    words = {*arms[one], *arms[other]}
    free = {_key(word) for word in words} | {*named.over, *named.differ}
    options = [*AXES, "algo"] if "algo" in words else [axis for axis in AXES if axis in words]
    changed = [axis for axis in ("algo", *AXES) if left.get(f"choices.{axis}") != right.get(f"choices.{axis}")]
    found = [
        f"{axis} ({left.get(f'choices.{axis}')} and {right.get(f'choices.{axis}')})" for axis in changed if axis not in options
    ]
    theirs = ("choices.", *(f"{'algorithm' if axis == 'algo' else axis}." for axis in changed))
    found += [
        f"{key} ({left.get(key)} and {right.get(key)})"
        for key in sorted({*left, *right})
        if identifies(key) and left.get(key) != right.get(key) and key not in free and not key.startswith(theirs)
    ]
    more = f" and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
    text = f"differs from the {other} in {', '.join(found[:MAX_SHOWN])}{more}, which evidence.differ does not name,"
    return [text] if found else []


def _shared(samples: Mapping[str, Sample]) -> list[tuple[str, str]]:
    """(arm, clause) for every pair of arms that share a run, however their settings are written."""
    found = []
    names = list(samples)
    for i, name in enumerate(names):
        for other in names[:i]:
            if {run.where for run in samples[name].runs} & {run.where for run in samples[other].runs}:
                found.append((name, f"has the runs of the {other}"))
    return found


def _mixed(runs: Sequence[Run], named: Named) -> list[str]:
    """Clauses about unknown settings, several code versions, or several versions of a library that determines numbers."""
    versions = sorted({run.version for run in runs})
    clauses = [
        f"has no setting {key}" for key in (*named.over, *named.differ) if runs and not any(key in run.config for run in runs)
    ]
    if not named.code and not one_code(runs):
        clauses.append(f"is of several code versions ({', '.join(versions)}), of which evidence.code names none")
    for library in sorted({name for run in runs for name in run.provenance.libraries}):
        found = sorted({run.provenance.libraries[library] for run in runs if library in run.provenance.libraries})
        if len(found) > 1:
            clauses.append(f"was made with several versions of {library} ({', '.join(found)})")
    known = [bool(run.provenance.libraries) for run in runs]
    if any(known) and not all(known):
        clauses.append(f"has {known.count(False)} runs whose versions of libraries are not known")
    return clauses


def one_code(runs: Sequence[Run]) -> bool:
    """True if all runs have the same code: one digest, the current code, or one commit without changes.

    A digest covers the run's options, so arms of the same commit have different digests.
    """
    commits = {"" if run.provenance.dirty else run.provenance.commit for run in runs}
    same_commit = len(commits) == 1 and "" not in commits
    return len({run.version for run in runs}) <= 1 or same_commit or all(run.is_current for run in runs)
