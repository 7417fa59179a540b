"""Verdicts: what the rule found in every task, joined with what is lacking and with the null arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rgpo.report.claims.claim import BASELINE, NULL, TREATMENT, Arm, Loaded
from rgpo.report.claims.evidence import Lack, Sample, Selection, select
from rgpo.report.claims.external import Anchor
from rgpo.report.claims.rules import FAILS, HOLDS, OPEN, Finding, Rule
from rgpo.report.claims.theory import Theory
from rgpo.report.read.run import Run
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.stats.independent import MAX_RUNS
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import NOTHING

REPRODUCED, CONTRADICTED, UNDECIDED, UNTESTED = OUTCOMES = "reproduced", "contradicted", "undecided", "not tested"
Anchors = Mapping[str, Mapping[str, Mapping[str, Anchor]]]  # file -> arm -> task -> number


class Verdict(NamedTuple):
    """The judgment of a claim, with our numbers, their setting and the code that they were measured with."""

    outcome: str
    ours: str
    setting: str
    version: str = NOTHING
    n: int = 0  # the fewest seeds of an arm in a task; 0 where no runs were judged


def judge(loaded: Loaded, runs: Sequence[Run], theory: Theory, anchors: Anchors, confidence: float) -> Verdict:
    """The verdict on one claim from everything that was read; only the runs that it names are used."""
    if loaded.theory is not None:
        return _from_theory(loaded.theory.judge(theory, confidence))
    assert loaded.rule is not None and loaded.named is not None
    selection, published = selected(loaded, runs, anchors)
    found = findings(loaded.rule, TREATMENT, selection, confidence)
    where, version = _setting(selection), _version(selection)
    if not found:
        nothing = f"no finished run of experiment {loaded.named.experiment}"
        return Verdict(UNTESTED, _join(lacks(selection.lacking)) if selection.runs else nothing, where, version)
    texts = [", ".join(f"{task} {finding.text}" for task, finding in found.items())]
    null, null_text = _null(loaded.rule, selection, confidence)
    others = lacks([lack for lack in selection.lacking if lack.arm != NULL])
    texts += [f"null arm: {null_text}"] if null_text else []
    outcome, why = decide(list(found.values()), others, null)
    differs = dict.fromkeys(f"protocol of {number.source}: {number.differs}" for number in published.values() if number.differs)
    n = min(sample.n for by_arm in selection.samples.values() for name, sample in by_arm.items() if sample.n and name != NULL)
    return Verdict(outcome, _join([*texts, *why, *selection.notes, *differs]), where, version, n)


def selected(loaded: Loaded, runs: Sequence[Run], anchors: Anchors) -> tuple[Selection, Mapping[tuple[str, str], Anchor]]:
    """The samples of a claim about runs, and the published numbers among them by (arm, task)."""
    assert loaded.named is not None
    published = {(name, task): number for name, arm in loaded.arms.items() for task, number in _published(arm, anchors).items()}
    return select(loaded.named, loaded.arms, published, runs), published


def findings(rule: Rule, arm: str, selection: Selection, confidence: float) -> dict[str, Finding]:
    """The finding of each task in which an arm and the baseline have enough runs."""
    found = {}
    for task, samples in selection.samples.items():
        baseline = samples.get(BASELINE, Sample())
        enough = all(
            sample.n >= MIN_RUNS or sample.anchor for sample in (samples[arm], baseline) if sample.n or sample is not baseline
        )
        if enough and samples[arm].n and (baseline.n or not rule.needs_baseline):
            found[task] = rule.judge(task, samples[arm], baseline, confidence)
    return found


def decide(found: Sequence[Finding], lacking: Sequence[str], null: str, unit: str = "seeds per arm") -> tuple[str, list[str]]:
    """The outcome, and clauses with the reasons why it is not decided.

    null: HOLDS if the null arm passes the rule too, OPEN if it was not run, FAILS otherwise.
    """
    if any(finding.outcome == FAILS for finding in found) and not lacking:
        return CONTRADICTED, []
    why = list(lacking)
    open_ = [finding for finding in found if finding.outcome == OPEN]
    if open_:
        n = max(finding.n for finding in open_) if all(finding.n for finding in open_) else 0
        why += [f"{'more than ' + format(MAX_RUNS, ',') if n > MAX_RUNS else n} {unit} would decide"] if n else []
    elif not lacking and null == OPEN:
        why.append("the null arm was not run")
    elif not lacking and null == HOLDS:
        why.append("the null arm passes the same rule")
    undecided = bool(open_ or why)
    return (UNDECIDED if undecided else REPRODUCED), why


def lacks(found: Sequence[Lack]) -> list[str]:
    """One clause for each arm and reason: "baseline not run in ant, walker2d"."""
    tasks: dict[tuple[str, str], list[str]] = {}
    for lack in found:
        tasks.setdefault((lack.arm, lack.why), []).append(lack.task)
    return [f"{arm} {why} in {', '.join(names)}" for (arm, why), names in tasks.items()]


def _null(rule: Rule, selection: Selection, confidence: float) -> tuple[str, str]:
    """The null arm through the same rule: HOLDS only if it holds in every task that the claim has."""
    found = findings(rule, NULL, selection, confidence)
    if len(found) < len(selection.samples):
        return OPEN, ""
    text = ", ".join(f"{task} {finding.text}" for task, finding in found.items())
    return (HOLDS if all(finding.outcome == HOLDS for finding in found.values()) else FAILS), text


def _from_theory(found: Sequence[Finding]) -> Verdict:
    if not found:
        return Verdict(UNTESTED, "no results of `python -m experiments.theory`", NOTHING)
    outcome, why = decide(found, [], FAILS, "rounds")
    return Verdict(outcome, _join([*(finding.text for finding in found), *why]), "docs/theory.md")


def _published(arm: Arm, anchors: Anchors) -> Mapping[str, Anchor]:
    """task -> number of an arm {external: file/arm}."""
    file, _, name = str(arm.get("external", "")).partition("/")
    return anchors.get(file, {}).get(name, {})


def _setting(selection: Selection) -> str:
    """Length and seeds, once if they are the same everywhere."""
    words = []
    for arms in selection.samples.values():
        sizes = {sample.n for sample in arms.values() if sample.runs}
        first = next((sample.runs[0] for sample in arms.values() if sample.runs), None)
        if first is not None:
            span = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
            words.append(f"{first.experiment}, {setting(first)}, {span} seed{'' if span == '1' else 's'}")
    return "; ".join(dict.fromkeys(words)) or NOTHING


def _version(selection: Selection) -> str:
    """The code version of the evidence, and whether the code that determines numbers has changed since."""
    runs = selection.runs
    if not runs:
        return NOTHING
    versions = ", ".join(dict.fromkeys(run.version for run in runs))
    return f"{versions}: {'unchanged' if all(run.is_current for run in runs) else 'changed since'}"


def _join(clauses: Sequence[str]) -> str:
    return "; ".join(clauses)
