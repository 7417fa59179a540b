"""Over all tasks of an experiment: mean, IQM, median, optimality gap, profiles and probability of improvement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rgpo.report.read.groups import Group
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap as stats
from rgpo.report.stats.bootstrap import MIN_RUNS, Floats
from rgpo.report.tables.baseline import baseline_of, scores
from rgpo.report.tables.table import Table, estimate, number, word

SCORE = "normalised score: 0 is the untrained policy, 1 the mean of {baseline} on the task"


class Interval(NamedTuple):
    """An estimate and its interval, nan where there are too few runs."""

    value: float
    low: float
    high: float


def baseline_name(groups: Sequence[Group], settings: Settings) -> str:
    """Label that score 1 stands for."""
    found = [baseline_of(task, groups, settings.baseline) for task in sorted({group.task for group in groups})]
    return next((group.label for group in found if group), "the baseline")


def aggregates(found: Mapping[str, Mapping[str, Floats]], settings: Settings) -> dict[str, dict[str, Interval]]:
    """label -> aggregate -> estimate over every task that the label has, with stratified bootstrap intervals."""
    made: dict[str, dict[str, Interval]] = {}
    for label, by_task in found.items():
        strata = list(by_task.values())
        enough = min(len(scores) for scores in strata) >= MIN_RUNS
        draws = stats.bootstrap(strata, stats.generator(settings.seed, label, "aggregates"), settings.num_resamples)
        made[label] = {}
        for name, aggregate in stats.AGGREGATES.items():
            low, high = stats.percentiles(aggregate(draws), settings.confidence) if enough else (np.nan, np.nan)
            made[label][name] = Interval(float(aggregate(strata)), float(low), float(high))
    return made


def improvements(found: Mapping[str, Mapping[str, Floats]], baseline: str, settings: Settings) -> dict[str, Interval]:
    """label -> P(a run of it > a run of the baseline), mean over the tasks that both have."""
    made = {}
    for label, by_task in found.items():
        tasks = sorted(by_task.keys() & found.get(baseline, {}).keys())
        if label == baseline or not tasks:
            continue
        pair = [[by_task[task] for task in tasks], [found[baseline][task] for task in tasks]]
        value = float(stats.probability_of_improvement(*pair))
        low = high = float("nan")
        if min(len(scores) for strata in pair for scores in strata) >= MIN_RUNS:
            rng = stats.generator(settings.seed, label, baseline, "improvement")
            draws = [stats.bootstrap(strata, rng, settings.num_resamples) for strata in pair]
            low, high = map(float, stats.percentiles(stats.probability_of_improvement(*draws), settings.confidence))
        made[label] = Interval(value, low, high)
    return made


def table(groups: Sequence[Group], settings: Settings) -> Table | None:
    """One row a label; None where no task has a baseline to be measured by."""
    found = scores(groups, settings)
    if not found:
        return None
    baseline = baseline_name(groups, settings)
    improved, summed = improvements(found, baseline, settings), aggregates(found, settings)
    rows = []
    for label, by_task in found.items():
        row: dict[str, Any] = {"label": label, "tasks": len(by_task), "runs": sum(map(len, by_task.values()))}
        row["n"] = min(map(len, by_task.values()))
        chances = {"better": improved.get(label, Interval(*[float("nan")] * 3))}
        for name, interval in {**summed[label], **chances}.items():
            key = name.replace(" ", "_")
            row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        rows.append(row)
    columns = [word("label", "algorithm"), number("tasks", "tasks"), number("runs", "runs"), number("n", "n")]
    columns += [estimate(name.replace(" ", "_"), name) for name in stats.AGGREGATES]
    columns.append(estimate("better", f"P(better than {baseline})"))
    caption = (
        f"{SCORE.format(baseline=baseline).capitalize()}. Mean and median over tasks of the mean over runs; IQM over all runs; "
        "optimality gap: mean of max(0, 1 - score), lower is better; P: probability that a run beats a run of the baseline, ties "
        f"half. Brackets: {100 * settings.confidence:g} % bootstrap stratified by task ({settings.num_resamples} resamples; the "
        "baseline's mean is taken as known), n: the fewest seeds of a task. Not adjusted for the number of algorithms."
    )
    return Table("overall", "Over all tasks", caption, tuple(columns), tuple(rows))
