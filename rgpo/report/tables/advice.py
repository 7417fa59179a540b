"""Advice on which arm to use: the best arm for each task, its lead over the others, and whether that exceeds noise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rgpo.report.read.arms import arms_of
from rgpo.report.read.columns import GOLD, KL_REF, PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.settings import DEFAULT_BASELINE, Settings
from rgpo.report.stats.bootstrap import MIN_RUNS, Interval
from rgpo.report.stats.independent import relative_change, simultaneous, summarize, welch
from rgpo.report.tables.baseline import baseline_of
from rgpo.report.tables.matched import Matched, against_baseline, arms_against_baseline
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import between, percent, plain

BETTER, WORSE, NOISE, FEW = "better", "worse", "within noise", "too few seeds"
DRIFT = "better at the end, but not at equal KL to the reference"
SHORT = "worse at the end, but better at equal KL to the reference"
OURS, NAME = "rgpo", "RGPO"  # the paper's algorithm, which the advice always mentions
NO_GATE, PARTS = "identity", ("sigmoid", "adaptive")  # gate and penalty of the paper's algorithm
MAX_TASKS = 4  # most tasks named in the headline
APART = "never at the baseline's KL to the reference"
PLACES = {BETTER: "better", WORSE: "worse", NOISE: "within noise of it"}
PLACES |= {APART: APART, DRIFT: "ahead only by more KL", SHORT: "behind only by less KL"}
WORDS = {TRAIN: "training return", GOLD: "gold reward", PROXY: "proxy reward"}


class Arm(NamedTuple):
    """An arm in one task: its mean over n seeds, its change from the baseline, and whether that exceeds noise."""

    algo: str
    ours: bool  # True for the paper's algorithm with a gate
    label: str
    family: str  # label without the strength of the constraint, if arms differ in it
    mean: float
    n: int
    change: str  # from the baseline
    outcome: str  # BETTER, WORSE, NOISE, FEW, DRIFT, SHORT, APART; "" for the baseline itself
    equal_kl: str = ""  # change from the baseline at equal KL to the reference, as text


class Contest(NamedTuple):
    """The arms in one task of an experiment, best first."""

    experiment: str
    task: str
    setting: str
    length: int  # in steps, or in iterations if runs are not planned in steps
    column: str
    baseline: str
    arms: tuple[Arm, ...]
    lead: str  # change from the second to the best
    leads: bool  # True if the lead exceeds noise
    language: bool
    current: bool  # True if all runs were made with the current number-determining code
    usual: bool  # True if the baseline is of the default algorithm
    fair: bool  # False if the baseline does better with other settings in another experiment of this task and length

    @property
    def num_seeds(self) -> int:
        """The fewest seeds of any arm."""
        return min(arm.n for arm in self.arms)

    @property
    def weight(self) -> tuple[bool, int, int, bool]:
        """Rank among the contests of the same task: those with the default baseline, more seeds, more steps, present code."""
        return self.usual, self.num_seeds, self.length, self.current

    @property
    def sentence(self) -> str:
        """A sentence on the best arm, its lead over the second, and its change from the baseline."""
        best, second = self.arms[0], self.arms[1]
        text = "" if self.leads else "no clear winner; "
        text += f"{best.label} has the highest {WORDS[self.column]}, {plain(best.mean, 4)} (n = {best.n}): "
        text += f"{self.lead} over the next, {second.label}, "
        text += "which is more than noise" if self.leads else "which may be noise"
        if second.label != self.baseline != best.label:
            verdict = {
                BETTER: "more than noise",
                DRIFT: "more than noise",
                FEW: f"with fewer than {MIN_RUNS} seeds undecided",
            }.get(best.outcome, "perhaps noise")
            text += f"; {best.change} over {self.baseline}, {verdict}"
        return f"{text}{f'; {best.equal_kl}' if best.equal_kl else ''}."


class Advice(NamedTuple):
    """The recommended arm, in one sentence per kind of task, with remarks and the reasons for each task."""

    headlines: tuple[str, ...]
    remarks: tuple[str, ...]
    contests: tuple[Contest, ...]


def advice(sections: Sequence[tuple[str, Sequence[Group]]], settings: Settings) -> Advice | None:
    """Derive advice from all experiments (name, groups); None if no task has two arms.

    An arm is recommended if it is better than the baseline beyond noise in at least one task and worse in none; otherwise the
    baseline is recommended. Language models are compared at equal KL to the reference instead of at the end.
    Noise: Welch's interval at `confidence`, adjusted for all arms of a task (Bonferroni).
    """
    best = _best_means(sections)
    contests = [
        contest
        for name, groups in sections
        for task in sorted({group.task for group in groups})
        if (contest := _contest(name, [group for group in groups if group.task == task], settings, best)) is not None
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


def _best_means(sections: Sequence[tuple[str, Sequence[Group]]]) -> dict[tuple[object, ...], float]:
    """The highest mean of each algorithm, gate and penalty in a task, over all experiments of the same length."""
    found: dict[tuple[object, ...], float] = {}
    for group in (group for _, groups in sections for group in groups):
        values = group.values(_column([group]), "final")
        if values.size:
            found[_kind(group)] = max(found.get(_kind(group), -math.inf), float(np.mean(values)))
    return found


def _kind(group: Group) -> tuple[object, ...]:
    config = group.used[0].config
    return (group.task, setting(group.used[0]), group.algo, config.get("choices.gate"), config.get("choices.penalty"))


def _column(groups: Sequence[Group]) -> str:
    """The metric used to compare a task's arms."""
    return TRAIN if not groups[0].language else GOLD if all(g.values(GOLD, "final").size for g in groups) else PROXY


def _weightiest(contests: Sequence[Contest]) -> list[Contest]:
    """For each task, the contests of the largest weight; those with too few seeds only if there are no others."""
    enough = [one for one in contests if any(arm.outcome not in ("", FEW) for arm in one.arms)] or list(contests)
    most = {one.task: max(other.weight for other in enough if other.task == one.task) for one in enough}
    return [one for one in enough if one.weight == most[one.task]]


def _contest(
    experiment: str, groups: Sequence[Group], settings: Settings, best: Mapping[tuple[object, ...], float]
) -> Contest | None:
    column = _column(groups)
    measured = [group for group in groups if group.values(column, "final").size]
    base = baseline_of(groups[0].task, measured, settings.baseline)
    if len(measured) < 2 or base is None:
        return None
    if not (base.language or settings.baseline):  # of several settings of the baseline, its best
        alike = [group for group in measured if _kind(group) == _kind(base) and len(group.used) == len(base.used)]
        base = max(alike, key=lambda group: float(np.mean(group.values(column, "final"))))
    each = simultaneous(settings.confidence, len(measured) - 1)
    ranked = sorted(measured, key=lambda group: -float(np.mean(group.values(column, "final"))))
    samples = [summarize(group.values(column, "final")) for group in ranked]
    against = summarize(base.values(column, "final"))
    equal = _equal_kl(measured, column, settings) if base.language else {}
    families = {group.label: arm.label if equal else group.label for arm in arms_of(measured) for group in arm.groups}
    arms = []
    for group, sample in zip(ranked, samples, strict=True):
        difference, _ = welch(sample, against, each)
        level = equal.get(group.label)
        if families[group.label] == families[base.label]:
            outcome = ""
        else:
            outcome = APART if equal and level is None else _outcome(difference, level)
        note = f"at equal KL to the reference, {level.level:.2g} nats, {percent(level.change)}" if level is not None else ""
        change = _gain(relative_change(sample, against, each), difference)
        gate, penalty = (group.used[0].config.get(f"choices.{axis}") for axis in ("gate", "penalty"))
        ours = (group.algo == OURS and gate != NO_GATE) or (gate, penalty) == PARTS
        arms.append(Arm(group.algo, ours, group.label, families[group.label], sample.mean, sample.n, change, outcome, note))
    lead, _ = welch(samples[0], samples[1], each)
    over_next = _gain(relative_change(samples[0], samples[1], each), lead)
    return Contest(
        experiment,
        base.task,
        setting(base.used[0]),
        base.used[0].planned_steps or base.used[0].num_iterations,
        column,
        base.label,
        tuple(arms),
        over_next,
        lead.low > 0,
        base.language,
        all(run.is_current for group in measured for run in group.used),
        base.algo == DEFAULT_BASELINE,
        base.language or against.mean >= best[_kind(base)],
    )


def _equal_kl(groups: Sequence[Group], column: str, settings: Settings) -> dict[str, Matched]:
    """Label -> change from the baseline at the largest KL to the reference that both reach."""
    found = {group.label: levels[-1] for group, _, levels in against_baseline(groups, column, settings)}
    for arm, _, levels in arms_against_baseline(groups, KL_REF, column, settings):
        found |= {group.label: levels[-1] for group in arm.groups}
    return found


def _outcome(difference: Interval, level: Matched | None) -> str:
    """The outcome at equal KL if available, else from the difference to the baseline at the end of training."""
    end = _of_interval(difference)
    if level is None or np.isnan(level.change.low):
        return end
    equal = _of_interval(level.change)
    if end == BETTER != equal:
        return DRIFT
    return SHORT if end == WORSE and equal == BETTER else equal


def _gain(change: Interval, difference: Interval) -> str:
    """The change in percent; where its interval is unbounded, or disagrees with that of the difference, the difference."""
    fits = all((one > 0) == (other > 0) for one, other in zip(change, difference, strict=True))
    if np.isnan(difference.low) or (np.isfinite(change).all() and fits):
        return percent(change)
    sign = "+" if difference.value > 0 else ""
    return f"{sign}{plain(difference.value)} {between(difference.low, difference.high, sign=True)}"


def _of_interval(found: Interval) -> str:
    return FEW if np.isnan(found.low) else BETTER if found.low > 0 else WORSE if found.high < 0 else NOISE


def _outcomes(contests: Sequence[Contest], only_ours: bool = False) -> dict[str, list[str]]:
    """Family -> distinct outcomes against the baseline in each contest."""
    found: dict[str, list[str]] = {}
    for contest in contests:
        once = dict.fromkeys((arm.family, arm.outcome) for arm in contest.arms if arm.outcome and (arm.ours or not only_ours))
        for family, outcome in once:
            found.setdefault(family, []).append(outcome)
    return found


def _headline(contests: Sequence[Contest]) -> str:
    """A sentence with the recommended arms, or the baselines with the reason and the result of the paper's algorithm."""
    outcomes = _outcomes(contests)
    good = {label: found.count(BETTER) for label, found in outcomes.items() if BETTER in found and WORSE not in found}
    bases = _baselines(contests)
    if good:
        most = max(good.values())
        names = " or ".join(label for label, count in good.items() if count == most)
        where = f"in {most} of {len(contests)} tasks" if len(contests) > 1 else f"on {contests[0].task}"
        return f"Use {names}: better than {bases} by more than noise {where}{', and worse in none' if len(contests) > 1 else ''}."
    if all(outcome == FEW for found in outcomes.values() for outcome in found):
        return f"Undecided: every arm has fewer than {MIN_RUNS} seeds. The highest means are listed below."
    tasks = list(dict.fromkeys(contest.task for contest in contests))
    listed = " or ".join(filter(None, [", ".join(tasks[:-1]), tasks[-1]]))
    where = f"on {listed}" if len(tasks) <= MAX_TASKS else "in any task"
    sizes = sorted({contest.num_seeds for contest in contests})
    where += f" ({' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} seeds)"
    better = sorted(label for label, found in outcomes.items() if BETTER in found)
    others = f"none of {len(outcomes)} others beats it" if len(outcomes) > 1 else "the other does not beat it"
    what = f"{', '.join(better)} beat it in one task and lost in another" if better else f"{others} beyond noise {where}"
    return f"Use {bases}: {what}.{_ours(contests)}"


def _baselines(contests: Sequence[Contest]) -> str:
    """The baselines' names, without settings that are irrelevant to the comparison or the only difference."""
    bases = [arm for contest in contests for arm in contest.arms if arm.label == contest.baseline]
    names, algos = (list(dict.fromkeys(one)) for one in ([arm.family for arm in bases], [arm.algo for arm in bases]))
    return " or ".join(algos if len(algos) == 1 < len(names) else names)


def _ours(contests: Sequence[Contest]) -> str:
    """A sentence on the paper's algorithm against the baseline, counting only comparisons with enough seeds."""
    outcomes = [outcome for found in _outcomes(contests, only_ours=True).values() for outcome in found]
    found = Counter(outcome for outcome in outcomes if outcome != FEW)
    if not outcomes or not found:
        return f" {NAME} has {FEW} to be compared." if outcomes else ""
    total = sum(found.values())
    listed = " and ".join(f"{PLACES[outcome]} in {number}" for outcome, number in found.most_common())
    where = " at equal KL to the reference" if any(arm.equal_kl for contest in contests for arm in contest.arms) else ""
    return f" {NAME} is {f'{listed} of {total} comparisons' if total > 1 else PLACES[next(iter(found))]}{where}."


def _remarks(contests: Sequence[Contest]) -> list[str]:
    """Sentences on arms that trade KL for reward, and on arms that are worse in some task."""
    outcomes = _outcomes(contests)
    drift, short, worse = (
        ", ".join(family for family, found in outcomes.items() if outcome in found) for outcome in (DRIFT, SHORT, WORSE)
    )
    found = [f"More reward at the end only with more KL to the reference: {drift}."] if drift else []
    found += [f"Less reward at the end, with less KL, but more at equal KL: {short}."] if short else []
    return [*found, f"Worse by more than noise in at least one task: {worse}."] if worse else found
