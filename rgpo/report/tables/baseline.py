"""Comparison of every algorithm with its task's baseline, as independent samples, with A/A noise and the paper's change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rgpo.report.read.columns import GOLD, KL_REF, PROXY, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.read.run import Problem
from rgpo.report.settings import DEFAULT_BASELINE, Settings
from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Floats
from rgpo.report.stats.independent import intraclass_correlation, noise, relative_change, summarize, welch
from rgpo.report.stats.small_samples import holm
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import NOTHING, Cell, Column, Row, Table, estimate, interval_cells, number, word

MEASURES = {"return": TRAIN, "reward, proxy": PROXY, "reward, gold": GOLD, "KL to reference": KL_REF}
RLHF = "Qwen2.5-1.5B, n = 3"
# The paper's relative changes (arXiv 2604.14895), from [P] its abstract or [Q] a reader of the full text.
# Its step counts, seeds, KL constants and reward model are unknown; see experiments/README.md.
PAPER = {  # (task, algorithm, baseline, measure) -> change
    ("walker2d", "rgpo", "ppo", "return"): "+81 % [Q]",
    ("ant", "rgpo", "ppo", "return"): "+47 % [Q]",
    ("halfcheetah", "rgpo", "ppo", "return"): "on par [Q]",
    ("hopper", "rgpo", "ppo", "return"): "on par [Q]",
    ("qwen_rlhf", "rgpo", "ppo", "reward, proxy"): f"+14.8 % [P] ({RLHF})",
    ("qwen_rlhf", "rgpo", "ppo", "KL to reference"): f"-16.0 % [P] ({RLHF})",
    ("qwen_rlhf", "rgpo", "grpo", "KL to reference"): f"-53.1 % [P] ({RLHF})",
}


def comparisons(groups: Sequence[Group], settings: Settings) -> Table:
    """Differences and relative changes against the baseline, one row per task, measure and algorithm."""
    rows, p_values = [], []
    for measure, column in MEASURES.items():
        for group in groups:
            base = baseline_of(group.task, groups, settings.baseline)
            if base is None or base is group or not group.by_seed(column, "final") or not base.by_seed(column, "final"):
                continue
            row, p = _row(measure, group, base, column, settings.confidence)
            rows.append(row)
            p_values.append(p)
    for row, p in zip(rows, holm(p_values), strict=True):
        row["p_holm"] = p
    num_tested = int(np.sum(~np.isnan(p_values)))
    columns = (
        word("measure", "measure"),
        word("task", "task"),
        word("label", "algorithm"),
        word("baseline", "against"),
        word("setting", "setting"),
        number("n", "n"),
        estimate("difference", "difference", 3, sign=True),
        estimate("percent", "change, %", 3, sign=True),
        number("noise", "A/A noise, ±%", 2),
        number("icc", "ICC over seeds", 2),
        Column("p, Holm", _p_text, key="p_holm"),
        word("paper", "paper says"),
    )
    caption = (
        "Algorithm minus baseline, as independent samples (n: the fewer seeds of the two); for rewards, the change against the "
        f"reference policy is compared. Brackets: {100 * settings.confidence:g} % Welch interval of the difference, Fieller's "
        "of the relative change (∞: the baseline's own mean is not distinguishable from 0); none for n < 3. A/A noise: what two "
        "further sets of n runs of the baseline itself may differ by. ICC: intraclass correlation of runs with the same "
        "seed, about 0 if they are independent; pairing by seed would need more. The intervals are not adjusted; p is "
        f"adjusted after Holm for the {num_tested} comparisons of this table. Paper: its own scale and settings, which are not "
        "ours; [P] abstract, [Q] a reader of the full text."
    )
    return Table("comparisons", "Against the baseline", caption, columns, tuple(rows), "measure")


def baseline_of(task: str, groups: Sequence[Group], label: str | None) -> Group | None:
    """The task's only group with the given label or algorithm; None if there are none or several.

    Without a label: the default baseline if it is unique; otherwise, among its variants (or all arms if it was not run), the one
    with the most seeds, preferring PPO's clip without an adaptive penalty, then the first in order.
    """
    name = label or DEFAULT_BASELINE
    members = [group for group in groups if group.task == task]
    found = [g for g in members if g.label == name] or [g for g in members if g.algo == name]
    if len(found) == 1 or label or not members:
        return found[0] if len(found) == 1 else None
    return max(found or members, key=lambda group: (len(group.used), is_plain(group)))


def is_plain(group: Group) -> bool:
    """True for PPO's clip without an adaptive penalty."""
    config = group.runs[0].config
    return config.get("choices.gate") == "clip" and config.get("choices.penalty") != "adaptive"


def baseline_problems(groups: Sequence[Group], settings: Settings) -> list[Problem]:
    """Problems for tasks that cannot be compared with the baseline given in the settings."""
    problems, name = [], settings.baseline
    for task in sorted({group.task for group in groups}) if name else ():
        several = [g.label for g in groups if g.task == task and g.algo == name]
        if baseline_of(task, groups, name) is None:
            hint = f"it has the variants {', '.join(several)}; give one as 'baseline=...'" if several else "it was not run"
            problems.append(Problem(f"baseline={name}", f"no comparison in task {task}: {hint}"))
    return problems


def baseline_choice(groups: Sequence[Group], settings: Settings) -> list[str]:
    """A sentence for each task whose baseline had to be chosen, because the default one was not run or has variants."""
    chosen = {}
    for task in sorted({group.task for group in groups}) if not settings.baseline else ():
        base = baseline_of(task, groups, None)
        if base is not None and base.label != DEFAULT_BASELINE and sum(group.task == task for group in groups) > 1:
            several = sum(group.task == task and group.algo == DEFAULT_BASELINE for group in groups) > 1
            why = f"{DEFAULT_BASELINE} has several variants" if several else f"{DEFAULT_BASELINE} was not run"
            chosen[task] = f"{task}: {why}, so arms are compared with {base.label}, the first of those with the most seeds"
    return [f"{text}; choose another with baseline=..." for text in chosen.values()]


def scores(groups: Sequence[Group], settings: Settings) -> dict[str, dict[str, Floats]]:
    """label -> task -> normalized scores (S,): 0 is the untrained policy, 1 the baseline's mean.

    Tasks whose baseline did not improve are left out. Control: the untrained policy's return is the mean first training return
    over all of the task's runs. Language: the change of the proxy reward from the reference policy, which is 0 for the reference.
    Our choice; the paper has no such score.
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


def _row(measure: str, group: Group, base: Group, column: str, confidence: float) -> tuple[dict[str, Cell], float]:
    """A row of the table and its p value."""
    x, y = (summarize(arm.values(column, "final")) for arm in (group, base))
    difference, p = welch(x, y, confidence)
    row: dict[str, Cell] = {"measure": measure, "task": group.task, "label": group.label, "algo": group.algo}
    row |= {"baseline": base.label, "scale": group.scale, "setting": setting(group.used[0]), "n": min(x.n, y.n)}
    row |= interval_cells("difference", difference)
    row |= interval_cells("percent", relative_change(x, y, confidence))
    paper = PAPER.get((group.task.split(" ")[0] if group.language else group.task, group.algo, base.algo, measure), "")
    ours, theirs = group.by_seed(column, "final"), base.by_seed(column, "final")
    pairs = np.array([(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])
    icc = intraclass_correlation(pairs) if len(pairs) >= MIN_RUNS else NAN
    return row | {"noise": noise(y, confidence), "icc": icc, "p": p, "paper": paper}, p


def _p_text(row: Row) -> str:
    p = float(row["p_holm"])
    return NOTHING if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
