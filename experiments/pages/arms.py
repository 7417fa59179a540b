"""Tables of the arms of control experiments: means over seeds, differences in return, and settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from experiments.pages.results import ESS, SPIKES, TAIL, Results, arm_of, not_run
from rgpo.report.read.columns import KL, TRAIN
from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Interval
from rgpo.report.stats.independent import Summary, relative_change, summarize, welch
from rgpo.report.tables.table import Table, estimate, interval_cells, number, span, word

Cells = dict[str, str | float]
EMPTY = Interval(NAN, NAN, NAN)


def arms(found: Results, experiment: str) -> str:
    """A row per arm and task with means over seeds: KL per update, share of updates with a spike, tail of the ratios, return."""
    groups = found.groups.get(experiment, [])
    if not groups:
        return not_run(experiment)
    rows: list[Cells] = []
    for group in groups:
        config = group.used[0].config
        row: Cells = {"task": group.task, "label": group.label, "gate": str(config["choices.gate"])}
        row |= {"penalty": str(config["choices.penalty"]), "n": len(group.used)}
        numbers = {"kl": (KL, "mean"), "spikes": SPIKES, "tail": TAIL, "ess": ESS, "return": (TRAIN, "final")}
        for key, name in numbers.items():
            scale = 100 if key in ("spikes", "ess") else 1
            values = scale * group.values(*name)
            row[key] = float(values.mean())
        returns = group.values(*numbers["return"])
        row["return_sd"] = float(returns.std(ddof=1)) if len(returns) > 1 else float("nan")
        rows.append(row)
    factorial = len({group.algo for group in groups}) == 1
    columns = (
        word("task", "task"),
        *((word("gate", "gate"), word("penalty", "penalty")) if factorial else (word("label", "algorithm"),)),
        number("n", "n"),
        number("kl", "KL per update, nats", 2),
        number("spikes", "KL > 0.04, % of updates", 2),
        number("tail", "tail index of the ratios", 2),
        number("ess", "effective sample size, %", 2),
        number("return", "return", 4),
        number("return_sd", "± sd", 3),
    )
    return Table("arms", "", "", columns, tuple(rows)).markdown()


def contrasts(found: Results, experiment: str, *pairs: str) -> str:
    """Changes in return in percent (Fieller), with a row per pair of arms ``gate+penalty:gate+penalty`` and a column per task."""
    return _pairs(found, experiment, pairs, relative_change, ", %")


def differences(found: Results, experiment: str, *pairs: str) -> str:
    """Differences in return (Welch), with a row per pair of arms ``gate+penalty:gate+penalty`` and a column per task."""
    return _pairs(found, experiment, pairs, lambda ours, theirs, confidence: welch(ours, theirs, confidence)[0], "")


def _pairs(
    found: Results, experiment: str, pairs: Sequence[str], change: Callable[[Summary, Summary, float], Interval], unit: str
) -> str:
    samples: dict[str, dict[str, Summary]] = {}
    for group in found.groups.get(experiment, []):
        samples.setdefault(group.task, {})[arm_of(group)] = summarize(group.values(TRAIN, "final"))
    if not samples:
        return not_run(experiment)
    rows: list[Cells] = []
    for pair in pairs:
        ours, theirs = pair.split(":")
        row: Cells = {"arm": ours, "against": theirs}
        for task, by_arm in samples.items():
            row |= interval_cells(task, change(by_arm[ours], by_arm[theirs], found.settings.confidence))
        rows.append(row | {"n": min(by_arm[arm].n for by_arm in samples.values() for arm in (ours, theirs))})
    columns = (
        word("arm", "gate + penalty"),
        word("against", "against"),
        number("n", "n"),
        *(estimate(task, f"{task}{unit}", sign=True) for task in sorted(samples)),
    )
    return Table("contrasts", "", "", columns, tuple(rows)).markdown()


def across(found: Results, experiment: str, column: str, *statistic: str) -> str:
    """Means over seeds of a statistic in percent, with a row per arm and a column per task; arms that have 0 are left out."""
    rows: dict[str, Cells] = {}
    for group in found.groups.get(experiment, []):
        mean = 100 * float(group.values(column, " ".join(statistic)).mean())
        rows.setdefault(arm_of(group), {"arm": arm_of(group)})[group.task] = mean
    if not rows:
        return not_run(experiment)
    shown = tuple(row for row in rows.values() if any(mean for task, mean in row.items() if task != "arm"))
    tasks = sorted({task for row in shown for task in row} - {"arm"})
    columns = (word("arm", "gate + penalty"), *(number(task, f"{task}, %", 2) for task in tasks))
    return Table("across", "", "", columns, shown).markdown()


def others(found: Results, experiment: str, baseline_in: str, baseline: str, word_in: str = "") -> str:
    """Changes in return in percent (Fieller) of an experiment's arms against an arm ``gate+penalty`` of another experiment.

    Arms with too few seeds for an interval are left out of a task. word_in: part of the labels of the arms that are listed.
    """
    theirs = {
        group.task: summarize(group.values(TRAIN, "final"))
        for group in found.groups.get(baseline_in, [])
        if arm_of(group) == baseline
    }
    rows: dict[str, Cells] = {}
    sizes: dict[str, list[int]] = {}
    for group in found.groups.get(experiment, []):
        ours = summarize(group.values(TRAIN, "final"))
        if group.task in theirs and word_in in group.label and ours.n >= MIN_RUNS:
            row = rows.setdefault(group.label, {"label": group.label, "n": ours.n})
            sizes.setdefault(group.label, []).append(ours.n)
            row |= {"seeds": span(sizes[group.label])}
            row |= interval_cells(group.task, relative_change(ours, theirs[group.task], found.settings.confidence))
    if not rows:
        return not_run(experiment)
    columns = [word("label", "algorithm"), replace(word("seeds", "n"), left=False)]
    tasks = sorted({task for row in rows.values() for task in theirs.keys() & row})
    columns += [estimate(task, f"{task}, %", sign=True) for task in tasks]
    blank = {key: value for task in tasks for key, value in interval_cells(task, EMPTY).items()}
    return Table("others", "", "", tuple(columns), tuple({**blank, **row} for row in rows.values())).markdown()
