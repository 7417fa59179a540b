"""Verdicts: the rule's findings in all tasks, combined with missing evidence and the null arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rgpo.report.claims.claim import Arm, Loaded
from rgpo.report.claims.evidence import BASELINE, EXTERNAL, NULL, TREATMENT, Lack, Sample, Selection
from rgpo.report.claims.external import Anchor, Anchors
from rgpo.report.claims.rules import FAILS, HOLDS, OPEN, Finding, Rule
from rgpo.report.claims.selection import one_code, select, why_none
from rgpo.report.claims.theory import CostRatio, Theory
from rgpo.report.read.reduce import ENDS_EARLY
from rgpo.report.read.repeated import Repeated
from rgpo.report.read.run import Run
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.stats.independent import MAX_RUNS
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import NOTHING

REPRODUCED, CONTRADICTED, UNDECIDED, UNTESTED = OUTCOMES = "reproduced", "contradicted", "undecided", "not tested"
CONFIDENCE = 0.95  # for all intervals used by rules, regardless of the report's setting


class Verdict(NamedTuple):
    """The verdict on a claim, with our numbers, their setting, and the code with which they were measured."""

    outcome: str
    ours: str
    setting: str
    version: str = NOTHING
    n: int = 0  # fewest seeds of an arm in a task; 0 if no runs were judged


def judge(
    loaded: Loaded, runs: Sequence[Run], theory: Theory, anchors: Anchors, repeated: Mapping[str, Repeated] | None = None
) -> Verdict:
    """Judge one claim; of all runs, only those that it names are used.

    repeated: experiment/folder -> runs that were repeated with later code.
    """
    if loaded.damage:
        return Verdict(UNTESTED, loaded.damage, NOTHING)
    if loaded.theory is not None:
        version = theory.cost_version if isinstance(loaded.theory, CostRatio) else theory.version
        return _from_theory(loaded.theory.judge(theory, CONFIDENCE), version)
    assert loaded.rule is not None and loaded.named is not None
    selection, published = selected(loaded, runs, anchors)
    found = findings(loaded.rule, TREATMENT, selection)
    where, version = _setting(selection), _version(selection, repeated or {})
    if not found:
        known = selection.runs or any(lack.why not in ("not run", "unfinished") for lack in selection.lacking)
        why_not = _join(lacks(selection.lacking)) if known else why_none(loaded.named, runs)
        return Verdict(UNTESTED, why_not, where, version)
    texts = [", ".join(f"{task} {finding.text}" for task, finding in found.items())]
    null, null_text = _null(loaded.rule, selection)
    others = lacks([lack for lack in selection.lacking if lack.arm != NULL])
    texts += [f"null arm: {null_text}"] if null_text else []
    outcome, why = decide(list(found.values()), others, null)
    if null == OPEN and outcome == UNDECIDED:
        why += lacks([lack for lack in selection.lacking if lack.arm == NULL])
    differs = dict.fromkeys(f"protocol of {number.source}: {number.differs}" for number in published.values() if number.differs)
    n = min(sample.n for by_arm in selection.samples.values() for name, sample in by_arm.items() if sample.n and name != NULL)
    return Verdict(outcome, _join([*texts, *why, *selection.notes, *differs]), where, version, n)


def selected(loaded: Loaded, runs: Sequence[Run], anchors: Anchors) -> tuple[Selection, Mapping[tuple[str, str], Anchor]]:
    """The samples of a claim about runs, and (arm, task) -> published number among them."""
    assert loaded.named is not None and loaded.rule is not None
    published = {(name, task): number for name, arm in loaded.arms.items() for task, number in _published(arm, anchors).items()}
    found = select(loaded.named, loaded.arms, published, runs)
    more = (*_unmeasured(loaded.rule, found), *_of_another_kind(loaded, published))
    return replace(found, lacking=(*found.lacking, *more)), published


def _unmeasured(rule: Rule, selection: Selection) -> list[Lack]:
    """Runs in which one of the rule's metrics is missing, not finite, or not measured at the end, such as diverged runs."""
    found = []
    for task, by_arm in selection.samples.items():
        for arm, sample in by_arm.items():
            for column, statistic in rule.numbers():
                bad = sorted({run.seed for run in sample.runs if not _is_measured(run, column, statistic)})
                found += [Lack(arm, task, _without(column, bad, sample.n))] if bad else []
            for column in rule.curves():
                bad = sorted({run.seed for run in sample.runs if not run.has(column)})
                found += [Lack(arm, task, _without(column, bad, sample.n))] if bad else []
    return found


def _is_measured(run: Run, column: str, statistic: str) -> bool:
    """True if a run's number is finite and its metric was measured until the end."""
    return math.isfinite(run.number(column, statistic)) and math.isnan(run.number(column, ENDS_EARLY))


def _without(column: str, seeds: Sequence[int], n: int) -> str:
    which = "any seed" if len(seeds) == n else f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"without a finite {column} of {which}"


def _of_another_kind(loaded: Loaded, published: Mapping[tuple[str, str], Anchor]) -> list[Lack]:
    """Published numbers with a different metric or number of steps than the claim's."""
    assert loaded.rule is not None and loaded.named is not None
    metrics, steps = {column for column, _ in loaded.rule.numbers()}, loaded.named.steps
    found = []
    for (arm, task), number in published.items():
        if task in loaded.named.tasks:
            length = "an unknown number of" if number.steps is None else f"{number.steps:,}"
            found += [Lack(arm, task, f"is {number.metric}, as published,")] if number.metric not in metrics else []
            found += (
                [Lack(arm, task, f"is published after {length} steps")] if number.steps is None or number.steps != steps else []
            )
    return found


def findings(rule: Rule, arm: str, selection: Selection) -> dict[str, Finding]:
    """task -> finding, for tasks in which the arm and the baseline have enough runs."""
    found = {}
    for task, samples in selection.samples.items():
        baseline = samples.get(BASELINE, Sample())
        enough = all(
            sample.n >= MIN_RUNS or sample.anchor for sample in (samples[arm], baseline) if sample.n or sample is not baseline
        )
        if enough and samples[arm].n and (baseline.n or not rule.needs_baseline):
            found[task] = rule.judge(task, samples[arm], baseline, CONFIDENCE)
    return found


def decide(found: Sequence[Finding], lacking: Sequence[str], null: str, unit: str = "seeds per arm") -> tuple[str, list[str]]:
    """The outcome, and clauses with the reasons if it is undecided.

    null: HOLDS if the null arm also passes the rule, OPEN if it was not run completely, else FAILS.
    """
    if any(finding.outcome == FAILS for finding in found) and not lacking:
        return CONTRADICTED, []
    why = list(lacking)
    open_ = [finding for finding in found if finding.outcome == OPEN]
    if open_:
        n = max(finding.n for finding in open_) if all(finding.n for finding in open_) else 0
        why += [f"{'more than ' + format(MAX_RUNS, ',') if n > MAX_RUNS else n} {unit} would decide"] if n else []
    elif not lacking and null == OPEN:
        why.append("the null arm was not run, or not whole")
    elif not lacking and null == HOLDS:
        why.append("the null arm passes the same rule")
    undecided = bool(open_ or why)
    return (UNDECIDED if undecided else REPRODUCED), why


def lacks(found: Sequence[Lack]) -> list[str]:
    """One clause per arm and reason, such as "baseline not run in ant, walker2d"."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for lack in found:
        tasks.setdefault((lack.arm, lack.why), []).append(lack.task)
    return [f"{arm} {why} in {', '.join(names)}" for (arm, why), names in tasks.items()]


def _null(rule: Rule, selection: Selection) -> tuple[str, str]:
    """Apply the rule to the null arm: HOLDS only if it holds in all of the claim's tasks; OPEN if evidence is missing."""
    found = findings(rule, NULL, selection)
    if len(found) < len(selection.samples) or any(lack.arm == NULL for lack in selection.lacking):
        return OPEN, ""
    text = ", ".join(f"{task} {finding.text}" for task, finding in found.items())
    return (HOLDS if all(finding.outcome == HOLDS for finding in found.values()) else FAILS), text


def _from_theory(found: Sequence[Finding], version: str) -> Verdict:
    if not found:
        return Verdict(UNTESTED, "no results of `python -m experiments.theory`", NOTHING)
    outcome, why = decide(found, [], FAILS, "rounds")
    return Verdict(outcome, _join([*(finding.text for finding in found), *why]), "docs/theory.md", version or NOTHING)


def _published(arm: Arm, anchors: Anchors) -> Mapping[str, Anchor]:
    """task -> published number for an arm {external: file/arm}."""
    file, _, name = str(arm.get(EXTERNAL, "")).partition("/")
    return anchors.get(file, {}).get(name, {})


def _setting(selection: Selection) -> str:
    """Length and seeds, listed once if they are the same for all tasks."""
    words = []
    for arms in selection.samples.values():
        sizes = {sample.n for sample in arms.values() if sample.runs}
        first = next((sample.runs[0] for sample in arms.values() if sample.runs), None)
        if first is not None:
            span = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
            words.append(f"{first.experiment}, {setting(first)}, {span} seed{'' if span == '1' else 's'}")
    return "; ".join(dict.fromkeys(words)) or NOTHING


def _version(selection: Selection, repeated: Mapping[str, Repeated]) -> str:
    """The evidence's code, as one commit if possible, and whether the code that determines numbers has changed since."""
    runs = selection.runs
    if not runs:
        return NOTHING
    commits = {run.provenance.commit[:10] for run in runs}
    versions = sorted(commits) if len(commits) == 1 and one_code(runs) else dict.fromkeys(run.version for run in runs)
    text = f"{', '.join(versions) or 'unknown'}: {'unchanged' if all(run.is_current for run in runs) else 'changed since'}"
    again = [found for run in runs if (found := repeated.get(run.where)) and found["code"] == run.present_code]
    if text.endswith("unchanged") or not again:
        return text
    how = "equal" if all(found["found"] == "equal" for found in again) else "equal to rounding"
    return f"{text}; {len(again)} of its {len(runs)} runs repeated with today's: {how}"


def _join(clauses: Sequence[str]) -> str:
    return "; ".join(clauses)
