"""A contest: the arms in one task of an experiment against the baseline, and which of them differ from it beyond noise."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rgpo.report.read.arms import arms_of
from rgpo.report.read.columns import GOLD, KL_REF, PROXY, TRAIN
from rgpo.report.read.groups import Group, identifies, identity
from rgpo.report.read.repeated import Repeated
from rgpo.report.settings import DEFAULT_BASELINE, Settings
from rgpo.report.stats.bootstrap import MIN_RUNS, Interval
from rgpo.report.stats.independent import relative_change, simultaneous, summarize, welch
from rgpo.report.tables.baseline import baseline_of, is_plain
from rgpo.report.tables.matched import Matched, against_baseline, arms_against_baseline
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import between, percent, plain

BETTER, WORSE, NOISE, FEW = "better", "worse", "within noise", "too few seeds"
DRIFT = "better at the end, but not at equal KL to the reference"
SHORT = "worse at the end, but better at equal KL to the reference"
OURS = "rgpo"  # the paper's algorithm
NO_GATE, PARTS = "identity", ("sigmoid", "adaptive")  # gate and penalty of the paper's algorithm
APART = "never at the baseline's KL to the reference"
WORDS = {TRAIN: "training return", GOLD: "gold reward", PROXY: "proxy reward"}


class Arm(NamedTuple):
    """An arm in one task: its mean over n seeds, its change from the baseline, and whether that exceeds noise."""

    algo: str
    ours: bool  # True for the paper's algorithm with a gate
    label: str
    family: str  # label without the strength of the constraint, if arms differ in it
    key: Hashable  # the same in all experiments
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
    borrowed: str  # the experiment that the baseline is from; "" if it is this one
    arms: tuple[Arm, ...]
    lead: str  # change from the second to the best
    leads: bool  # True if the lead exceeds noise
    language: bool
    current: bool  # True if all runs were made with the present number-determining code, or with code that gives the same
    usual: bool  # True if the baseline is the default one, with its own gate
    fair: bool  # False if the baseline does better with other settings in another experiment of this task and length
    num_settings: int  # number of settings of the baseline in the experiment, of which the best is the baseline

    @property
    def compared(self) -> list[Arm]:
        """The arms with an outcome: all but the baseline and those with too few seeds."""
        return [arm for arm in self.arms if arm.outcome not in ("", FEW)]

    @property
    def weight(self) -> tuple[bool, int, int, bool]:
        """Rank among the contests of a task: those with the default baseline, more seeds of it, more steps, present code."""
        return self.usual, next(arm.n for arm in self.arms if arm.label == self.baseline), self.length, self.current

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
        text += f"; {best.equal_kl}" if best.equal_kl else ""
        return f"{text}; {self.baseline} is from {self.borrowed}." if self.borrowed else f"{text}."


Sections = Sequence[tuple[str, Sequence[Group]]]  # experiments with their groups
Best = Mapping[tuple[object, ...], tuple[str, Group]]


def experiments_of_today(sections: Sections, repeated: Mapping[str, Repeated]) -> set[str]:
    """Experiments of the present number-determining code, and those of which a run was repeated with it and was equal.

    repeated: experiment/folder -> repetition.
    """
    found = set()
    for name, groups in sections:
        runs = [run for group in groups for run in group.used]
        again = any((one := repeated.get(run.where)) is not None and one["code"] == run.present_code for run in runs)
        if again or all(run.is_current for run in runs):
            found.add(name)
    return found


def best_groups(sections: Sections, today: Collection[str]) -> Best:
    """Of each algorithm, gate and penalty in a task, the group with the highest mean, with its experiment.

    Groups of all experiments of the same length are compared, except those with too few seeds; of equals, one of today's code.
    """
    found: dict[tuple[object, ...], tuple[str, Group]] = {}
    everything = ((name, group) for name, groups in sections for group in groups)
    for name, group in everything:
        if group.values(_column([group]), "final").size < MIN_RUNS:
            continue
        kind, rank = _kind(group), (_mean(group), name in today)
        if kind not in found or rank > (_mean(found[kind][1]), found[kind][0] in today):
            found[kind] = name, group
    return found


def _mean(group: Group) -> float:
    return float(np.mean(group.values(_column([group]), "final")))


def _with_usual(groups: Sequence[Group], best: Best) -> tuple[str, list[Group]]:
    """The experiment of the default baseline at its best under the conditions of these groups, and both; "" if there is none.

    Groups under other conditions than the baseline's are left out. Control only.
    """
    for group in groups:
        for name, other in best.values():
            if _is_usual(other) and not group.language and _conditions(other) == _conditions(group):
                return name, [*(one for one in groups if _conditions(one) == _conditions(group)), other]
    return "", list(groups)


def _is_usual(group: Group) -> bool:
    return group.algo == DEFAULT_BASELINE and (group.language or is_plain(group))


def _conditions(group: Group) -> tuple[object, ...]:
    """Task, length and settings of the task."""
    run = group.used[0]
    settings = sorted((key, repr(value)) for key, value in run.config.items() if key.startswith("task.") and identifies(key))
    return group.task, setting(run), tuple(settings)


def _kind(group: Group) -> tuple[object, ...]:
    config = group.used[0].config
    return *_conditions(group), group.algo, config.get("choices.gate"), config.get("choices.penalty")


def _column(groups: Sequence[Group]) -> str:
    """The metric used to compare a task's arms."""
    return TRAIN if not groups[0].language else GOLD if all(g.values(GOLD, "final").size for g in groups) else PROXY


def contest_of(
    experiment: str, groups: Sequence[Group], settings: Settings, best: Best, today: Collection[str]
) -> Contest | None:
    """The contest of an experiment's groups of one task; without PPO's clip, its best from another experiment is added.

    None if there are fewer than two arms.
    """
    column = _column(groups)
    measured = [group for group in groups if group.values(column, "final").size]
    source = ""
    if not settings.baseline and not any(_is_usual(group) for group in measured):
        source, measured = _with_usual(measured, best)
    base = baseline_of(groups[0].task, measured, settings.baseline)
    if len(measured) < 2 or base is None:
        return None
    alike = [base]
    if not (base.language or settings.baseline):  # of several settings of the baseline, its best
        alike = [group for group in measured if _kind(group) == _kind(base) and len(group.used) == len(base.used)]
        base = max(alike, key=_mean)
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
        of_task = [key for key in group.used[0].config if key.startswith("task.")]
        key = families[group.label] if group.language else (group.algo, identity(group.used[0], of_task))
        arms.append(Arm(group.algo, ours, group.label, families[group.label], key, sample.mean, sample.n, change, outcome, note))
    lead, _ = welch(samples[0], samples[1], each)
    over_next = _gain(relative_change(samples[0], samples[1], each), lead)
    return Contest(
        experiment,
        base.task,
        setting(base.used[0]),
        base.used[0].planned_steps or base.used[0].num_iterations,
        column,
        base.label,
        source,
        tuple(arms),
        over_next,
        lead.low > 0,
        base.language,
        {experiment, source or experiment} <= {*today},
        _is_usual(base),
        base.language or _kind(base) not in best or against.mean >= _mean(best[_kind(base)][1]),
        len(alike),
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
