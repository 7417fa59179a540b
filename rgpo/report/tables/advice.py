"""Advice on which arm to use, from the contests of all experiments, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from rgpo.report.read.repeated import Repeated
from rgpo.report.settings import DEFAULT_BASELINE, Settings
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.tables.contest import (
    APART,
    BETTER,
    DRIFT,
    FEW,
    NOISE,
    SHORT,
    WORSE,
    Contest,
    Sections,
    best_groups,
    contest_of,
    experiments_of_today,
)
from rgpo.report.tables.table import span

NAME = "RGPO"  # the paper's algorithm, which the advice always mentions
MAX_TASKS = 4  # most tasks named in the headline
PLACES = {BETTER: "better", WORSE: "worse", NOISE: "not shown to differ from it"}
PLACES |= {APART: APART, DRIFT: "ahead only by more KL", SHORT: "behind only by less KL"}


class Advice(NamedTuple):
    """The recommended arm, in one sentence per kind of task, with remarks and the reasons for each task."""

    headlines: tuple[str, ...]
    remarks: tuple[str, ...]
    contests: tuple[Contest, ...]


def advice(sections: Sections, settings: Settings, repeated: Mapping[str, Repeated] | None = None) -> Advice | None:
    """Derive advice from all experiments (name, groups); None if no task has two arms.

    An arm is recommended if it is better than the baseline beyond noise in at least one task and worse in none; otherwise the
    baseline is recommended. Language models are compared at equal KL to the reference instead of at the end.
    Noise: Welch's interval at `confidence`, adjusted for all arms of an experiment in a task (Bonferroni).
    """
    today = experiments_of_today(sections, repeated or {})
    best = best_groups(sections, today)
    contests = [
        contest
        for name, groups in sections
        for task in sorted({group.task for group in groups})
        if (contest := contest_of(name, [group for group in groups if group.task == task], settings, best, today)) is not None
    ]
    kinds = {"For control": [c for c in contests if not c.language], "For language models": [c for c in contests if c.language]}
    kinds = {kind: members for kind, members in kinds.items() if members}
    alone = len(kinds) == 1
    headlines, remarks = [], []
    for kind, of_kind in kinds.items():
        fair = [contest for contest in of_kind if contest.fair] or of_kind
        members = _weightiest(fair)
        text = _headline(members)
        headlines.append(text if alone else f"{kind}, {text[0].lower()}{text[1:]}")
        remarks += [one if alone else f"{kind}: {one[0].lower()}{one[1:]}" for one in _remarks(members)]
    return Advice(tuple(headlines), tuple(remarks), tuple(contests)) if contests else None


def _weightiest(contests: Sequence[Contest]) -> list[Contest]:
    """For each task, the contests of the largest weight; those with too few seeds only if there are no others."""
    enough = [one for one in contests if one.compared] or list(contests)
    most = {one.task: max(other.weight for other in enough if other.task == one.task) for one in enough}
    return [one for one in enough if one.weight == most[one.task]]


def _outcomes(contests: Sequence[Contest], only_ours: bool = False) -> dict[str, list[str]]:
    """Family -> distinct outcomes against the baseline in each task; families of equal settings are one, named as at first."""
    names: dict[Hashable, str] = {}
    once: dict[tuple[str, str, str], None] = {}
    for contest in contests:
        for arm in contest.arms:
            if arm.outcome and (arm.ours or not only_ours):
                once[names.setdefault(arm.key, arm.family), contest.task, arm.outcome] = None
    found: dict[str, list[str]] = {}
    for family, _, outcome in once:
        found.setdefault(family, []).append(outcome)
    return found


def _headline(contests: Sequence[Contest]) -> str:
    """A sentence with the recommended arms, or the baselines with the reason and the result of the paper's algorithm."""
    outcomes = _outcomes(contests)
    good = {label: found.count(BETTER) for label, found in outcomes.items() if BETTER in found and WORSE not in found}
    tasks = sorted({contest.task for contest in contests})
    bases, one_setting = _baselines(contests)
    if good:
        most = max(good.values())
        names = " or ".join(label for label, count in good.items() if count == most)
        where = f"in {most} of {len(tasks)} tasks" if len(tasks) > 1 else f"on {tasks[0]}"
        return f"Use {names}: better than {bases} by more than noise {where}{', and worse in none' if len(tasks) > 1 else ''}."
    compared = [arm for contest in contests for arm in contest.compared]
    if not compared:
        return f"Undecided: every arm has fewer than {MIN_RUNS} seeds. The highest means are listed below."
    listed = " or ".join(filter(None, [", ".join(tasks[:-1]), tasks[-1]]))
    where = f"on {listed}" if len(tasks) <= MAX_TASKS else "in any task"
    where += f" ({span([arm.n for arm in compared])} seeds)"
    better = sorted(label for label, found in outcomes.items() if BETTER in found)
    others = [len({arm.key for contest in contests if contest.task == task for arm in contest.compared}) for task in tasks]
    subject = f"none of {span(others)} other arms beats it" if max(others) > 1 else "the other does not beat it"
    subject += "" if one_setting else " at its best setting"
    what = f"{', '.join(better)} beat it in one task and lost in another" if better else f"{subject} beyond noise {where}"
    return f"Use {bases}: {what}.{_ours(contests)}"


def _baselines(contests: Sequence[Contest]) -> tuple[str, bool]:
    """The baselines' names, and False if they are one algorithm at several settings, which the names leave out."""
    bases = [arm for contest in contests for arm in contest.arms if arm.label == contest.baseline]
    names, algos = (list(dict.fromkeys(one)) for one in ([arm.family for arm in bases], [arm.algo for arm in bases]))
    if len(algos) == 1 < len(names) and all(contest.usual for contest in contests):
        return algos[0], len({arm.key for arm in bases}) == 1
    return " or ".join(names), True


def _ours(contests: Sequence[Contest]) -> str:
    """A sentence on the paper's algorithm against the baseline, counting only comparisons with enough seeds."""
    outcomes = [outcome for found in _outcomes(contests, only_ours=True).values() for outcome in found]
    found = Counter(outcome for outcome in outcomes if outcome != FEW)
    if not outcomes or not found:
        return f" {NAME} has {FEW} to be compared." if outcomes else ""
    total = sum(found.values())
    listed = " and ".join(f"{PLACES[outcome]} in {number}" for outcome, number in found.most_common())
    where = " at equal KL to the reference" if any(arm.equal_kl for contest in contests for arm in contest.arms) else ""
    tasks = len({contest.task for contest in contests if any(arm.ours for arm in contest.compared)})
    size = f"{total} comparisons{f' ({tasks} tasks)' if 1 < tasks < total else ''}"
    return f" {NAME} is {f'{listed} of {size}' if total > 1 else PLACES[next(iter(found))]}{where}."


def _remarks(contests: Sequence[Contest]) -> list[str]:
    """Sentences on arms that trade KL for reward, and on arms that are worse in some task."""
    outcomes = _outcomes(contests)
    drift, short, worse = (
        ", ".join(family for family, found in outcomes.items() if outcome in found) for outcome in (DRIFT, SHORT, WORSE)
    )
    found = [f"More reward at the end only with more KL to the reference: {drift}."] if drift else []
    found += [f"Less reward at the end, with less KL, but more at equal KL: {short}."] if short else []
    found += [f"Worse by more than noise in at least one task: {worse}."] if worse else []
    for name in dict.fromkeys(contest.experiment for contest in contests if contest.borrowed):
        sources = sorted({contest.borrowed for contest in contests if contest.experiment == name and contest.borrowed})
        found.append(f"The arms of {name} are compared with {DEFAULT_BASELINE} from {' and '.join(sources)}.")
    for contest in contests:
        if contest.num_settings > 1:
            where = f"The baseline on {contest.task} is {contest.baseline}"
            found.append(f"{where}, the best of its {contest.num_settings} settings.")
    return found
