"""Aggregates over an experiment's tasks: mean, IQM, median and probability of improvement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap
from rgpo.report.stats.bootstrap import AGGREGATES, MIN_RUNS, NAN, Floats, Interval, Strata
from rgpo.report.tables.baseline import baseline_of, scores
from rgpo.report.tables.table import Cell, Table, estimate, interval_cells, number, word

SHOWN = ("mean", "IQM", "median")  # no optimality gap, because 1 is the baseline's mean, not an optimum
SCORE = "normalized score: 0 is the untrained policy, 1 the mean of {baseline} on the task"


def baseline_name(groups: Sequence[Group], settings: Settings) -> str:
    """The label of the baseline, whose mean has score 1."""
    found = [baseline_of(task, groups, settings.baseline) for task in sorted({group.task for group in groups})]
    return next((group.label for group in found if group), "the baseline")


def aggregates(found: Mapping[str, Mapping[str, Floats]], baseline: str, settings: Settings) -> dict[str, dict[str, Interval]]:
    """label -> aggregate -> estimate over all of the label's tasks.

    The bootstrap is stratified by task and arm and also resamples the baseline: each resample of scores is divided by the
    baseline's mean in that resample, to account for the uncertainty of the score's unit.
    """
    made = {}
    for label, by_task in found.items():
        units = [found.get(baseline, {}).get(task, np.ones(MIN_RUNS)) for task in by_task]
        strata = list(by_task.values()) + ([] if label == baseline else units)
        made[label] = {
            name: _estimate(strata, partial(_in_units, AGGREGATES[name], len(by_task)), settings, label, "aggregates")
            for name in SHOWN
        }
    return made


def _in_units(aggregate: Callable[[Strata], Floats], num_tasks: int, strata: Strata) -> Floats:
    """Aggregate of scores (..., S) divided by the baseline's means; strata: the label's, then the baseline's if different."""
    units = strata[num_tasks:] or strata
    return aggregate([x / unit.mean(axis=-1, keepdims=True) for x, unit in zip(strata[:num_tasks], units, strict=True)])


def improvements(found: Mapping[str, Mapping[str, Floats]], baseline: str, settings: Settings) -> dict[str, Interval]:
    """label -> P(its run > a run of the baseline), averaged over common tasks."""
    made = {}
    for label, by_task in found.items():
        tasks = sorted(by_task.keys() & found.get(baseline, {}).keys())
        if label == baseline or not tasks:
            continue
        strata = [by_task[task] for task in tasks] + [found[baseline][task] for task in tasks]

        def statistic(both: Strata, num_tasks: int = len(tasks)) -> Floats:
            return bootstrap.probability_of_improvement(both[:num_tasks], both[num_tasks:])

        made[label] = _estimate(strata, statistic, settings, label, baseline, "improvement")
    return made


def overall(groups: Sequence[Group], settings: Settings) -> Table | None:
    """One row per label; None if no task has a baseline for normalization."""
    found = scores(groups, settings)
    if not found:
        return None
    baseline = baseline_name(groups, settings)
    improved, summed = improvements(found, baseline, settings), aggregates(found, baseline, settings)
    rows = []
    for label, by_task in found.items():
        row: dict[str, Cell] = {"label": label, "tasks": len(by_task), "runs": sum(map(len, by_task.values()))}
        row["n"] = min(map(len, by_task.values()))
        for name, interval in summed[label].items():
            row |= interval_cells(name.replace(" ", "_"), interval)
        row |= interval_cells("better", improved.get(label, Interval(NAN, NAN, NAN)))
        rows.append(row)
    columns = [word("label", "algorithm"), number("tasks", "tasks"), number("runs", "runs"), number("n", "n")]
    columns += [estimate(name.replace(" ", "_"), name) for name in SHOWN]
    columns.append(estimate("better", f"P(better than {baseline})"))
    caption = (
        f"{SCORE.format(baseline=baseline).capitalize()}. Mean and median over tasks of the mean over runs; IQM over all runs; "
        "P: probability that a run beats a run of the baseline; ties "
        f"count half. Brackets: {100 * settings.confidence:g} % bootstrap stratified by task ({settings.num_resamples} "
        "resamples) and arm, the baseline included; n: the fewest seeds of a task. Not adjusted for multiple algorithms."
    )
    return Table("overall", "Over all tasks", caption, tuple(columns), tuple(rows))


def _estimate(strata: Strata, statistic: Callable[[Strata], Floats], settings: Settings, *names: str) -> Interval:
    rng = bootstrap.generator(settings.seed, *names)
    return bootstrap.estimate(strata, statistic, rng, num_resamples=settings.num_resamples, confidence=settings.confidence)
