"""The numbers of an experiment: one row a task and algorithm, and one row a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rgpo.errors import ConfigError, close_matches
from rgpo.report import stats
from rgpo.report.groups import Group
from rgpo.report.load import Problem, Run
from rgpo.report.settings import DEFAULT_BASELINE, Settings
from rgpo.report.stats import MIN_RUNS, Floats
from rgpo.report.tables import NOTHING, Column, Row, Table, few, interval, number, plain, word

TRAIN, EVAL, KL, SPIKE = "return/train_mean", "return/eval_mean", "kl/old_exact", "kl/spike"
SPEED = "speed/env_steps_per_s"
COLUMNS = (TRAIN, EVAL, KL, SPIKE, SPEED)
EXPECTED = (TRAIN, KL, SPIKE)  # a run without them, in a task where others have them, is worth a sentence


def summary(groups: Sequence[Group], settings: Settings) -> Table:
    """Statistics over the seeds of each group, and against the baseline's group of the same task where there is one."""
    rows = tuple(_row(group, baseline_of(group.task, groups, settings.baseline), settings) for group in groups)
    percent, share = f"{100 * settings.confidence:g} %", f"{100 * settings.final_fraction:g} %"
    columns = [
        word("task", "task"),
        word("label", "algorithm"),
        number("n", "seeds"),
        number("final_train", f"return (train, last {share})", 4),
        interval("final_train_low", "final_train_high", f"{percent} interval", 4),
        number("final_train_iqm", "IQM", 4),
        number("final_eval", "return (last eval)", 4),
        Column("CV over seeds (%)", _cv_text),
        number("kl_mean", "KL mean (nats)"),
        number("kl_median", "KL median (nats)"),
        Column("KL spikes (%)", _spike_text),
        number("env_steps_per_s", "env steps/s"),
    ]
    compared = {row["baseline"] for row in rows} - {""}
    if compared:
        against = compared.pop() if len(compared) == 1 else settings.baseline or DEFAULT_BASELINE
        columns[7:7] = [Column(f"return minus {against}", _difference_text)]
    if any(row["note"] for row in rows):
        columns.append(word("note", "note"))
    caption = (
        f"Return (train): mean raw return over the last {share} of a run's iterations in which an episode ended, "
        f"then over seeds. Intervals: {percent} percentile bootstrap over seeds ({settings.num_resamples} resamples), "
        f"none for n < {MIN_RUNS}; with 3 to 5 seeds they are too narrow. IQM: interquartile mean over seeds "
        "(of 3 seeds it is the mean). Return (last eval): mean over seeds of the last deterministic evaluation. "
        "CV: standard deviation over |mean| of return (train). "
        "KL: KL(old || new) after an update in nats, pooled over iterations and seeds; "
        "KL spikes: share of the iterations with kl/spike = 1. Env steps/s: median over a run, mean over seeds."
    )
    return Table("summary", caption, tuple(columns), rows, section="task")


def run_table(groups: Sequence[Group], settings: Settings) -> Table:
    """One row a run, with the config keys that tell variants apart."""
    rows = tuple(_run_row(group, run, settings) for group in groups for run in group.runs)
    columns = [word("task", "task"), word("label", "algorithm"), word("gate", "gate"), number("seed", "seed")]
    columns += [word("status", "status"), word("progress", "iterations")]
    columns += [number("final_train", "return (train, end)", 4), number("kl_mean", "KL mean (nats)")]
    columns += [word("commit", "commit"), word("run_id", "run")]
    caption = "Every readable run; * marks those that the means are made of."
    return Table("runs", caption, tuple(columns), rows, section="task")


def missing_metrics(groups: Sequence[Group]) -> list[Problem]:
    """Runs that lack a metric of the summary which other runs of their task have."""
    problems = []
    for task in sorted({group.task for group in groups}):
        runs = [run for group in groups if group.task == task for run in group.runs]
        for column in EXPECTED:
            lacking = [run for run in runs if not run.has(column)]
            if len(lacking) < len(runs):
                why = f"{column} was never measured; the run is left out where it is needed"
                problems += [Problem(f"{run.experiment}/{run.run_id}", why) for run in lacking]
    return problems


def baseline_of(task: str, groups: Sequence[Group], wanted: str | None) -> Group | None:
    """The one group of the task with the wanted label or algorithm, for the others to be compared with, or None."""
    name = wanted or DEFAULT_BASELINE
    members = [group for group in groups if group.task == task]
    found = [g for g in members if g.label == name] or [g for g in members if g.algo == name]
    return found[0] if len(found) == 1 else None


def check_baseline(groups: Sequence[Group], settings: Settings) -> None:
    """ConfigError if the baseline that was asked for is no algorithm or label of any experiment."""
    known = {group.algo for group in groups} | {group.label for group in groups}
    if settings.baseline and groups and settings.baseline not in known:
        near = close_matches(settings.baseline, known) or f" There are {', '.join(sorted(known))}."
        raise ConfigError(f"baseline={settings.baseline}: no run has this algorithm or label.{near}")


def baseline_problems(groups: Sequence[Group], settings: Settings) -> list[Problem]:
    """Tasks without the comparison that was asked for, or, if none was, whose default baseline has several variants."""
    problems, name = [], settings.baseline or DEFAULT_BASELINE
    for task in sorted({group.task for group in groups}):
        several = [g.label for g in groups if g.task == task and g.algo == name]
        if baseline_of(task, groups, settings.baseline) is None and (several or settings.baseline):
            hint = f"it has the variants {', '.join(several)}; give one as 'baseline=...'" if several else "it was not run"
            problems.append(Problem(f"baseline={name}", f"no comparison in task {task}: {hint}"))
    return problems


def final_train(run: Run, fraction: float) -> float:
    """Mean return/train_mean over the last `fraction` of the iterations that have one; nan if none has."""
    values = _measured(run, TRAIN)
    return float(np.mean(values[-max(1, round(fraction * len(values))) :])) if len(values) else float("nan")


def _row(group: Group, baseline: Group | None, settings: Settings) -> Row:
    final = _final(group, settings)
    options = {"num_resamples": settings.num_resamples, "confidence": settings.confidence}
    low, high = float("nan"), float("nan")
    if len(final) >= MIN_RUNS:
        rng = stats.generator(settings.seed, group.task, group.label, "final")
        low, high = stats.bootstrap_interval([final], stats.mean_of_all, rng, **options)  # type: ignore[arg-type]
    last_eval = [values[-1] for run in group.used if len(values := _measured(run, EVAL))]
    kl = np.concatenate([np.empty(0), *(_measured(run, KL) for run in group.used)])
    spikes = np.concatenate([np.empty(0), *(_measured(run, SPIKE) for run in group.used)])
    speed = [float(np.median(values)) for run in group.used if len(values := _measured(run, SPEED))]
    row: dict[str, Any] = {
        "task": group.task,
        "algo": group.algo,
        "label": group.label,
        "n": len(final) or len(group.used),
        "final_train": _mean(final),
        "final_train_low": low,
        "final_train_high": high,
        "final_train_iqm": stats.iqm(final) if len(final) else float("nan"),
        "final_eval": _mean(last_eval),
        "cv_percent": stats.coefficient_of_variation(final),
        "kl_mean": _mean(kl),
        "kl_median": float(np.median(kl)) if len(kl) else float("nan"),
        "spike_rate": stats.spike_rate(spikes),
        "env_steps_per_s": _mean(speed),
    }
    return {**row, **_comparison(group, final, baseline, settings), "note": _note(group)}


def _comparison(group: Group, final: Floats, baseline: Group | None, settings: Settings) -> dict[str, Any]:
    nan = float("nan")
    found: dict[str, Any] = {"baseline": "", "difference": nan, "difference_low": nan, "difference_high": nan}
    found["difference_percent"] = nan
    base = _final(baseline, settings) if baseline else np.empty(0)
    if baseline is None or not len(base):
        return found
    found["baseline"] = baseline.label
    if baseline is group or not len(final):
        return found
    difference = float(np.mean(final) - np.mean(base))
    found |= {"difference": difference, "difference_percent": 100 * difference / abs(float(np.mean(base)) or nan)}
    if min(len(final), len(base)) >= MIN_RUNS:
        low, high = stats.bootstrap_interval(
            [final, base],
            stats.difference_of_means,
            stats.generator(settings.seed, group.task, group.label, baseline.label),
            num_resamples=settings.num_resamples,
            confidence=settings.confidence,
        )
        found |= {"difference_low": low, "difference_high": high}
    return found


def _run_row(group: Group, run: Run, settings: Settings) -> Row:
    commit = str(run.provenance.get("commit") or "")[:10]
    return {
        "task": run.task,
        "label": group.label,
        "algo": run.algo,
        "gate": run.gate,
        "seed": run.seed,
        "status": run.status + (" *" if run in group.used else ""),
        "progress": f"{run.reached}/{run.num_iterations}",
        "final_train": final_train(run, settings.final_fraction),
        "kl_mean": _mean(_measured(run, KL)),
        "commit": commit + ("-dirty" if run.provenance.get("dirty") else ""),
        "run_id": run.run_id,
    }


def _note(group: Group) -> str:
    reached = sorted({run.reached for run in group.used})
    if group.provisional:
        span = f"{reached[0]}" if len(reached) == 1 else f"{reached[0]} to {reached[-1]}"
        return f"provisional: none finished, at iteration {span} of {group.used[0].num_iterations}"
    left = len(group.runs) - len(group.used)
    return f"{left} run{'s' if left > 1 else ''} not counted" if left else ""


def _difference_text(row: Row) -> str:
    if np.isnan(row["difference"]):
        return "baseline" if row["baseline"] == row["label"] else NOTHING
    sign = "+" if row["difference"] >= 0 else ""
    text = f"{sign}{plain(row['difference'], 4)} ({row['difference_percent']:+.0f} %)"
    if np.isnan(row["difference_low"]):
        return f"{text}, {few(row)}" if row["n"] < MIN_RUNS else text
    return f"{text}, {plain(row['difference_low'], 4)} to {plain(row['difference_high'], 4)}"


def _spike_text(row: Row) -> str:
    return NOTHING if np.isnan(row["spike_rate"]) else f"{100 * row['spike_rate']:.1f}"


def _cv_text(row: Row) -> str:
    if np.isnan(row["cv_percent"]):
        return few(row)
    return plain(row["cv_percent"]) + (f" ({few(row)})" if row["n"] < MIN_RUNS else "")


def _final(group: Group, settings: Settings) -> Floats:
    found = np.array([final_train(run, settings.final_fraction) for run in group.used], dtype=np.float64)
    return np.asarray(found[~np.isnan(found)])


def _measured(run: Run, column: str) -> Floats:
    values = run.columns.get(column, np.empty(0))
    return np.asarray(values[~np.isnan(values)])


def _mean(values: Sequence[float] | Floats) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
