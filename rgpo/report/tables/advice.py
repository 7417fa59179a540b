"""Advice on arms: the best of every task, its lead over the others, and whether that is more than noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rgpo.report.read.columns import GOLD, PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import MIN_RUNS, Interval
from rgpo.report.stats.independent import relative_change, simultaneous, summarize, welch
from rgpo.report.tables.baseline import baseline_of
from rgpo.report.tables.matched import against_baseline
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import percent, plain

BETTER, WORSE, NOISE, FEW = "better", "worse", "within noise", "too few seeds"
DRIFT = "better at the end, but not at equal KL to the reference"
SHORT = "worse at the end, but better at equal KL to the reference"
OURS, NAME = "rgpo", "RGPO"  # the algorithm of the paper, which the advice names in any case
PLACES = {BETTER: "better", WORSE: "worse", NOISE: "within noise of it"}
PLACES |= {DRIFT: "better, but not at equal KL to the reference,", SHORT: "worse, but better at equal KL to the reference,"}
WORDS = {TRAIN: "training return", GOLD: "gold reward", PROXY: "proxy reward"}


class Arm(NamedTuple):
    """One arm of a task: its mean over n seeds, its change against the baseline, and whether that is more than noise."""

    algo: str
    label: str
    mean: float
    n: int
    change: Interval  # percent
    outcome: str  # BETTER, WORSE, NOISE, FEW, DRIFT, SHORT; "" for the baseline itself
    equal_kl: str = ""  # change against the baseline at equal KL to the reference


class Contest(NamedTuple):
    """The arms of one task of an experiment, best first."""

    experiment: str
    task: str
    setting: str
    column: str
    baseline: str
    arms: tuple[Arm, ...]
    lead: Interval  # change of the best against the second, percent
    leads: bool  # the lead is more than noise
    language: bool

    @property
    def sentence(self) -> str:
        """The best arm, its lead over the second, and its place beside the baseline."""
        best, second = self.arms[0], self.arms[1]
        text = "" if self.leads else "no clear winner; "
        text += f"{best.label} has the highest {WORDS[self.column]}, {plain(best.mean, 4)} (n = {best.n}): "
        text += f"{percent(self.lead)} over the next, {second.label}, "
        text += "which is more than noise" if self.leads else "which may be noise"
        if second.label != self.baseline != best.label:
            verdict = {
                BETTER: "more than noise",
                DRIFT: "more than noise",
                FEW: f"with fewer than {MIN_RUNS} seeds undecided",
            }.get(best.outcome, "perhaps noise")
            text += f"; {percent(best.change)} over {self.baseline}, {verdict}"
        return f"{text}{f'; {best.equal_kl}' if best.equal_kl else ''}."


class Advice(NamedTuple):
    """The arm to use, in one sentence for each kind of task, what else to know, and the reason in each task."""

    headlines: tuple[str, ...]
    remarks: tuple[str, ...]
    contests: tuple[Contest, ...]


def advice(sections: Sequence[tuple[str, Sequence[Group]]], settings: Settings) -> Advice | None:
    """The advice from all experiments (name, groups); None if no task has two arms.

    An arm is recommended if it is better than the baseline beyond noise in some task and worse in none; else the baseline is. For
    language models, better at the end does not count for an arm that is not better at equal KL to the reference.
    Noise: Welch's interval at `confidence`, over all arms of a task together (Bonferroni).
    """
    contests = [
        contest
        for name, groups in sections
        for task in sorted({group.task for group in groups})
        if (contest := _contest(name, [group for group in groups if group.task == task], settings)) is not None
    ]
    kinds = {"For control": [c for c in contests if not c.language], "For language models": [c for c in contests if c.language]}
    kinds = {kind: members for kind, members in kinds.items() if members}
    alone = len(kinds) == 1
    headlines, remarks = [], []
    for kind, members in kinds.items():
        text = _headline(members)
        headlines.append(text if alone else f"{kind}, {text[0].lower()}{text[1:]}")
        remarks += [one if alone else f"{kind}: {one[0].lower()}{one[1:]}" for one in _remarks(members)]
    return Advice(tuple(headlines), tuple(remarks), tuple(contests)) if contests else None


def _contest(experiment: str, groups: Sequence[Group], settings: Settings) -> Contest | None:
    column = TRAIN if not groups[0].language else GOLD if all(g.values(GOLD, "final").size for g in groups) else PROXY
    measured = [group for group in groups if group.values(column, "final").size]
    base = baseline_of(groups[0].task, measured, settings.baseline)
    if len(measured) < 2 or base is None:
        return None
    each = simultaneous(settings.confidence, len(measured) - 1)
    ranked = sorted(measured, key=lambda group: -float(np.mean(group.values(column, "final"))))
    samples = [summarize(group.values(column, "final")) for group in ranked]
    against = summarize(base.values(column, "final"))
    equal = (
        {group.label: levels[-1] for group, _, levels in against_baseline(measured, column, settings)} if base.language else {}
    )
    arms = []
    for group, sample in zip(ranked, samples, strict=True):
        difference, _ = welch(sample, against, each)
        outcome = FEW if np.isnan(difference.low) else BETTER if difference.low > 0 else WORSE if difference.high < 0 else NOISE
        level = equal.get(group.label)
        if outcome == BETTER and level is not None and level.change.value <= 0:
            outcome = DRIFT
        elif outcome == WORSE and level is not None and level.change.value > 0:
            outcome = SHORT
        note = f"at equal KL to the reference, {level.level:.2g} nats, {percent(level.change)}" if level is not None else ""
        change = relative_change(sample, against, each)
        arms.append(Arm(group.algo, group.label, sample.mean, sample.n, change, "" if group is base else outcome, note))
    lead, _ = welch(samples[0], samples[1], each)
    over_next = relative_change(samples[0], samples[1], each)
    return Contest(
        experiment,
        base.task,
        setting(base.used[0]),
        column,
        base.label,
        tuple(arms),
        over_next,
        lead.low > 0,
        base.language,
    )


def _headline(contests: Sequence[Contest]) -> str:
    """The recommended arms, or the baselines and the reason, and the place of the paper's algorithm."""
    outcomes: dict[str, list[str]] = {}
    for arm in (arm for contest in contests for arm in contest.arms):
        outcomes.setdefault(arm.label, []).append(arm.outcome)
    good = {label: found.count(BETTER) for label, found in outcomes.items() if BETTER in found and WORSE not in found}
    bases = _baselines(contests)
    if good:
        most = max(good.values())
        names = " or ".join(label for label, count in good.items() if count == most)
        where = f"in {most} of {len(contests)} tasks" if len(contests) > 1 else "in the only task"
        return f"Use {names}: better than {bases} by more than noise {where}{', and worse in none' if len(contests) > 1 else ''}."
    if all(outcome in ("", FEW) for found in outcomes.values() for outcome in found):
        return f"Undecided: every arm has fewer than {MIN_RUNS} seeds. The highest means are listed below."
    where = "in any task" if len(contests) > 1 else "in the only task"
    better = sorted(label for label, found in outcomes.items() if BETTER in found)
    what = (
        f"{', '.join(better)} beat it in one task and lost in another"
        if better
        else f"nothing else beats it beyond noise {where}"
    )
    return f"Use {bases}: {what}.{_ours(contests)}"


def _baselines(contests: Sequence[Contest]) -> str:
    """The names of the baselines, without settings where several differ in nothing else."""
    bases = [arm for contest in contests for arm in contest.arms if arm.label == contest.baseline]
    labels, algos = (list(dict.fromkeys(names)) for names in ([arm.label for arm in bases], [arm.algo for arm in bases]))
    return " or ".join(algos if len(algos) == 1 < len(labels) else labels)


def _ours(contests: Sequence[Contest]) -> str:
    """A sentence on the outcomes of the paper's algorithm against the baseline, where there were enough seeds."""
    outcomes = [arm.outcome for contest in contests for arm in contest.arms if arm.algo == OURS and arm.outcome]
    found = Counter(outcome for outcome in outcomes if outcome != FEW)
    if not outcomes or not found:
        return f" {NAME} has {FEW} to be compared." if outcomes else ""
    total = sum(found.values())
    listed = ", ".join(f"{PLACES[outcome]} in {number} of {total} comparisons" for outcome, number in found.most_common())
    return f" {NAME} is {listed if total > 1 else PLACES[next(iter(found))]}."


def _remarks(contests: Sequence[Contest]) -> list[str]:
    """Arms that trade KL for reward, and arms to avoid where the baseline is recommended."""
    arms = [arm for contest in contests for arm in contest.arms]
    drift, short, worse = (
        ", ".join(dict.fromkeys(arm.label for arm in arms if arm.outcome == outcome)) for outcome in (DRIFT, SHORT, WORSE)
    )
    found = [f"More reward at the end only with more KL to the reference: {drift}."] if drift else []
    found += [f"Less reward at the end, with less KL, but more at equal KL: {short}."] if short else []
    return [*found, f"Worse by more than noise in at least one task: {worse}."] if worse else found
