"""Every algorithm against the baseline of its task, paired by seed, with what the paper says beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rgpo.report.read.groups import Group
from rgpo.report.read.load import Problem
from rgpo.report.settings import DEFAULT_BASELINE, Settings
from rgpo.report.stats.bootstrap import Floats
from rgpo.report.stats.small_samples import NAN, change, holm
from rgpo.report.tables import paper
from rgpo.report.tables.summary import GOLD, KL_REF, PROXY, TRAIN, setting
from rgpo.report.tables.table import Column, Row, Table, estimate, number, word

MEASURES = {"return": TRAIN, "reward, proxy": PROXY, "reward, gold": GOLD, "KL to reference": KL_REF}


def comparisons(groups: Sequence[Group], settings: Settings) -> Table:
    """Differences and relative changes against the baseline, one row a task, measure and algorithm."""
    rows: list[dict[str, Any]] = []
    for measure, column in MEASURES.items():
        for group in groups:
            base = baseline_of(group.task, groups, settings.baseline)
            if base is None or base is group or not group.by_seed(column, "final") or not base.by_seed(column, "final"):
                continue
            found = change(group.by_seed(column, "final"), base.by_seed(column, "final"), settings.confidence)
            row: dict[str, Any] = {
                "measure": measure,
                "task": group.task,
                "label": group.label,
                "algo": group.algo,
                "baseline": base.label,
            }
            row |= {"scale": group.scale, "setting": setting(group.used[0]), "n": found.num_pairs}
            row |= {"difference": found.difference, "difference_low": found.low, "difference_high": found.high}
            row |= {"percent": found.percent, "percent_low": found.percent_low, "percent_high": found.percent_high}
            rows.append(row | {"p": found.p, "paper": paper.says(group, base, measure)})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    tested = sum(not np.isnan(row["p"]) for row in rows)
    columns = (
        word("measure", "measure"),
        word("task", "task"),
        word("label", "algorithm"),
        word("baseline", "against"),
        word("setting", "setting"),
        number("n", "pairs"),
        estimate("difference", "difference", 3, sign=True),
        estimate("percent", "change, %", 3, sign=True),
        Column("p, Holm", _p_text, key="p_holm"),
        word("paper", "paper says"),
    )
    caption = (
        "Algorithm minus baseline on the same seeds (n pairs); of rewards, the change against the reference policy is compared. "
        f"Brackets: {100 * settings.confidence:g} % Student interval of the paired difference, Fieller interval of the relative "
        "change (∞: the baseline's own mean is not told apart from 0); none for n < 3. Each interval stands for itself; p is "
        f"adjusted after Holm for the {tested} comparisons of this table. Paper: its own scale and settings, which are not ours; "
        "[P] abstract, [Q] a reader of the full text."
    )
    return Table("comparisons", "Against the baseline", caption, columns, tuple(rows), "measure")


def baseline_of(task: str, groups: Sequence[Group], wanted: str | None) -> Group | None:
    """The one group of the task with the wanted label or algorithm, for the others to be compared with, or None."""
    name = wanted or DEFAULT_BASELINE
    members = [group for group in groups if group.task == task]
    found = [g for g in members if g.label == name] or [g for g in members if g.algo == name]
    return found[0] if len(found) == 1 else None


def baseline_problems(groups: Sequence[Group], settings: Settings) -> list[Problem]:
    """Tasks without the comparison that was asked for, or, if none was, whose default baseline has several variants."""
    problems, name = [], settings.baseline or DEFAULT_BASELINE
    for task in sorted({group.task for group in groups}):
        several = [g.label for g in groups if g.task == task and g.algo == name]
        if baseline_of(task, groups, settings.baseline) is None and (several or settings.baseline):
            hint = f"it has the variants {', '.join(several)}; give one as 'baseline=...'" if several else "it was not run"
            problems.append(Problem(f"baseline={name}", f"no comparison in task {task}: {hint}"))
    return problems


def scores(groups: Sequence[Group], settings: Settings) -> dict[str, dict[str, Floats]]:
    """label -> task -> scores (S,) of its runs: 0 is the untrained policy, 1 the baseline's mean; tasks without a baseline
    that learnt something are left out.

    Control: the untrained policy's return is the mean first training return of all the task's runs. Language: the change of
    the proxy reward against the reference policy, which is 0 for the reference. Our choice; the paper has no such score.
    """
    found: dict[str, dict[str, Floats]] = {}
    for task in sorted({group.task for group in groups}):
        members = [group for group in groups if group.task == task]
        base = baseline_of(task, groups, settings.baseline)
        if base is None:
            continue
        column = PROXY if base.language else TRAIN
        starts = np.concatenate([group.values(TRAIN, "first") for group in members])
        zero = 0.0 if base.language else float(np.mean(starts)) if starts.size else NAN
        gained = float(np.mean(base.values(column, "final"))) - zero if base.values(column, "final").size else NAN
        for group in members if gained > 0 else ():
            if group.values(column, "final").size:
                found.setdefault(group.label, {})[task] = (group.values(column, "final") - zero) / gained
    return found


def _p_text(row: Row) -> str:
    p = row["p_holm"]
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
