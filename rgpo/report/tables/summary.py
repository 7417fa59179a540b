"""The numbers of an experiment per task and algorithm: returns or rewards, KL, spikes, cost, and one row a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rgpo.report.read.groups import Group, telling_keys
from rgpo.report.read.load import Problem, Run
from rgpo.report.read.reduce import KL, TIMES
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap as stats
from rgpo.report.stats import small_samples
from rgpo.report.stats.bootstrap import MIN_RUNS, Floats
from rgpo.report.tables.table import Column, Table, estimate, number, plain, word

TRAIN, EVAL, SPEED, ITERATION = "return/train_mean", "return/eval_mean", "speed/env_steps_per_s", "time/iteration_s"
PROXY, GOLD, KL_REF = "reward/eval_proxy_change", "reward/eval_gold_change", "kl/eval_ref_sequence"
LENGTH, TRUNCATED, TOKENS = "language/length_mean", "language/truncated_share", "language/num_tokens"
NAN = float("nan")
START = (word("task", "task"), word("label", "algorithm"), number("n", "n"))  # of every table of groups


def returns(groups: Sequence[Group], settings: Settings) -> Table:
    """Control: return, its spread over seeds, KL per update and spikes."""
    rows = []
    for group in groups:
        final = group.values(TRAIN, "final")
        cv, cv_low, cv_high = small_samples.coefficient_of_variation(final, settings.confidence)
        rows.append(
            _start(group, len(final) or len(group.used))
            | _estimate("return", group, final, settings)
            | _estimate("iqm", group, final, settings, stats.iqm)
            | _estimate("eval", group, group.values(EVAL, "last"), settings)
            | {"cv": cv, "cv_low": cv_low, "cv_high": cv_high}
            | _end(group, settings)
        )
    columns = (
        *START,
        estimate("return", "return (train)", 4),
        estimate("iqm", "IQM", 4),
        estimate("eval", "return (eval)", 4),
        estimate("cv", "CV, %"),
        *_end_columns(settings),
    )
    caption = (
        f"Return (train): mean raw return over the last {100 * settings.final_fraction:g} % of a run's iterations in which an "
        "episode ended, then over n seeds. IQM: interquartile mean over seeds (of 3 seeds it is the mean). Return (eval): last "
        f"deterministic evaluation. CV: standard deviation over |mean| of return (train), interval after Vangel. "
        f"{_intervals(settings)}"
    )
    return Table("returns", "Returns", caption, columns, tuple(rows), "task")


def rewards(groups: Sequence[Group], settings: Settings) -> Table:
    """Language: reward against the reference policy by proxy and gold, KL to the reference, lengths."""
    rows = []
    for group in groups:
        row = _start(group, len(group.values(PROXY, "final")) or len(group.used))
        for key, column in (("proxy", PROXY), ("gold", GOLD), ("kl_ref", KL_REF), ("length", LENGTH)):
            row |= _estimate(key, group, group.values(column, "final"), settings)
        truncated = group.values(TRUNCATED, "final")
        row["truncated"] = 100 * float(np.mean(truncated)) if truncated.size else NAN
        rows.append(row | _end(group, settings))
    columns = (
        word("task", "task (scale)"),
        *START[1:],
        estimate("proxy", "Δ reward, proxy", sign=True),
        estimate("gold", "Δ reward, gold", sign=True),
        estimate("kl_ref", "KL to reference, nats/completion"),
        estimate("length", "length, tokens"),
        number("truncated", "truncated, %"),
        *_end_columns(settings),
    )
    caption = (
        "Δ reward: policy minus reference on the same held-out prompts, mean over the last "
        f"{100 * settings.final_fraction:g} % of a run's evaluations, then over n seeds; gold: a judge that training never saw. "
        f"KL to reference: KL(policy || reference) of a whole completion on held-out prompts. {_intervals(settings)}"
    )
    return Table("rewards", "Rewards and KL", caption, columns, tuple(rows), "task")


def spikes(groups: Sequence[Group], settings: Settings) -> Table:
    """Share of updates whose KL exceeds each threshold."""
    rows = []
    for group in groups:
        rates = spike_rates(group)
        row = _start(group, len(rates)) | {"updates": int(sum(group.values(KL, "count")))}
        means = 100 * rates.mean(axis=0) if len(rates) else np.full(len(settings.thresholds), np.nan)
        rows.append(row | {f"above_{level:g}": float(mean) for level, mean in zip(settings.thresholds, means, strict=True)})
    columns = (
        *START,
        number("updates", "updates"),
        *(number(f"above_{level:g}", f"> {level:g}") for level in settings.thresholds),
    )
    caption = "Per cent of updates with KL(old || new) above each threshold (nats), mean over n seeds."
    return Table("spikes", "KL spikes by threshold", caption, columns, tuple(rows), "task")


def cost(groups: Sequence[Group], settings: Settings) -> Table:
    """Wall time: steps per second, seconds of each phase of an iteration, hours a run."""
    rows = []
    for group in groups:
        per_iteration = group.by_seed(ITERATION, "median")
        row = _start(group, len(per_iteration) or len(group.used))
        row |= _estimate("speed", group, group.values(SPEED, "median"), settings)
        tokens = [value / per_iteration[s] for s, value in group.by_seed(TOKENS, "mean").items() if s in per_iteration]
        row["tokens"] = float(np.mean(tokens)) if tokens else NAN
        for phase, column in zip(("collect", "update", "diagnostics", "gradvar", "evaluate"), TIMES, strict=True):
            row[phase] = _mean(group.values(column, "median"))
        row |= {"iteration": _mean(group.values(ITERATION, "median")), "hours": _mean(group.values(ITERATION, "sum")) / 3600}
        rows.append(row)
    columns = (
        *START,
        estimate("speed", "steps/s", 4),
        number("tokens", "tokens/s", 4),
        number("iteration", "iteration, s"),
        number("collect", "collect, s"),
        number("update", "update, s"),
        number("evaluate", "evaluate, s"),
        number("hours", "hours a run"),
    )
    caption = (
        "Wall time on the machines of the provenance box, whatever else they did. Steps/s: environment steps over collect, "
        "update and diagnostics time. All but hours: median over a run's iterations, mean over n seeds; evaluate: of iterations "
        f"that have one. {_intervals(settings)}"
    )
    return Table("cost", "Cost", caption, columns, tuple(rows), "task")


def run_table(groups: Sequence[Group], settings: Settings) -> Table:
    """One row a run with the config keys that vary."""
    runs = [run for group in groups for run in group.runs]
    keys = sorted({key for algo in {run.algo for run in runs} for key in telling_keys([r for r in runs if r.algo == algo])})
    language = any(group.language for group in groups)
    column, title = (PROXY, "Δ reward, proxy") if language else (TRAIN, "return (train)")
    rows = []
    for group in groups:
        for run in group.runs:
            commit = str(run.provenance.get("commit") or "")[:10]
            rows.append(
                {"task": run.task, "algo": run.algo, "label": group.label, "seed": run.seed}
                | {key: str(run.config.get(key, "")) for key in keys}
                | {"status": run.status + (" *" if run in group.used else ""), "progress": f"{run.reached}/{run.num_iterations}"}
                | {
                    "final": run.number(column, "final"),
                    "kl": run.number(KL, "mean"),
                    "hours": run.number(ITERATION, "sum") / 3600,
                }
                | {"commit": commit + ("-dirty" if run.provenance.get("dirty") else ""), "reason": run.reason or ""}
                | {"run_id": run.run_id}
            )
    columns = [word("task", "task"), word("algo", "algorithm"), number("seed", "seed")]
    columns += [word(key, key.removeprefix("choices.")) for key in keys]
    columns += [word("status", "status"), word("progress", "iterations"), number("final", title, 4), number("kl", "KL, nats")]
    columns += [number("hours", "hours"), word("commit", "commit"), word("run_id", "run")]
    caption = "Every readable run with the settings that vary; * marks those that means are made of."
    return Table("runs", "Runs", caption, tuple(columns), tuple(rows), "task")


def missing_metrics(groups: Sequence[Group]) -> list[Problem]:
    """Runs that lack a metric of the tables which other runs of their task have."""
    problems = []
    for task in sorted({group.task for group in groups}):
        runs = [run for group in groups if group.task == task for run in group.runs]
        for column in (TRAIN, KL, PROXY, GOLD, KL_REF):
            lacking = [run for run in runs if not run.has(column) and run.status != "running"]
            if len(lacking) < len(runs) and any(run.has(column) for run in runs):
                why = f"{column} was never measured; the run is left out where it is needed"
                problems += [Problem(run.where, why) for run in lacking]
    return problems


def note(group: Group) -> str:
    """Unfinished or uncounted runs, in a few words."""
    reached = sorted({run.reached for run in group.used})
    if group.provisional:
        span = f"{reached[0]}" if len(reached) == 1 else f"{reached[0]} to {reached[-1]}"
        return f"provisional: none finished, at iteration {span} of {group.used[0].num_iterations}"
    left = len(group.runs) - len(group.used)
    return f"{left} run{'s' if left > 1 else ''} not counted" if left else ""


def spike_rates(group: Group) -> Floats:
    """Share of updates above each threshold (S, K), of the runs that measured KL."""
    found = [run.reduced.spike_rates for run in group.used if run.has(KL)]
    return np.array(found) if found else np.empty((0, 0))


def setting(run: Run) -> str:
    """How far the run went, in words: "300k steps", "embedded, 200 iterations"."""
    if run.scale != "none":
        return f"{run.scale}, {run.num_iterations} iterations"
    steps = run.config.get("total_env_steps")
    if not isinstance(steps, int) or run.config.get("num_iterations"):
        return f"{run.num_iterations} iterations"
    return f"{plain(steps / 1e6)}M steps" if steps >= 1_000_000 else f"{plain(steps / 1e3)}k steps"


def _start(group: Group, n: int) -> dict[str, Any]:
    return {"task": group.task, "algo": group.algo, "label": group.label, "scale": group.scale, "n": n}


def _end(group: Group, settings: Settings) -> dict[str, Any]:
    """KL per update, spikes and what is to be said about the group's runs."""
    rates = spike_rates(group)
    level = settings.thresholds.index(settings.spike_threshold)
    row = _estimate("kl", group, group.values(KL, "mean"), settings)
    row["kl_median"] = _mean(group.values(KL, "median"))
    row |= _estimate("spikes", group, 100 * rates[:, level] if len(rates) else np.empty(0), settings)
    return row | {"note": note(group)}


def _end_columns(settings: Settings) -> tuple[Column, ...]:
    shown = f"KL > {settings.spike_threshold:g}, %"
    return estimate("kl", "KL per update, nats"), estimate("spikes", shown), word("note", "note")


def _estimate(
    key: str, group: Group, values: Floats, settings: Settings, statistic: Callable[[Floats], Floats] = stats.mean
) -> dict[str, float]:
    """key, key_low, key_high: the statistic over seeds with its bootstrap interval; nan where there are too few."""
    low = high = NAN
    if values.size >= MIN_RUNS:
        draws = stats.bootstrap([values], stats.generator(settings.seed, group.task, group.label, key), settings.num_resamples)[0]
        low, high = map(float, stats.percentiles(statistic(draws), settings.confidence))
    return {key: float(statistic(values)) if values.size else NAN, f"{key}_low": low, f"{key}_high": high}


def _intervals(settings: Settings) -> str:
    return (
        f"Brackets: {100 * settings.confidence:g} % percentile bootstrap over seeds ({settings.num_resamples} resamples), none "
        f"for n < {MIN_RUNS}; with 3 to 5 seeds they are too narrow (of normal values they cover 75 to 85 %), unlike the "
        "intervals of the comparisons."
    )


def _mean(values: Floats) -> float:
    return float(np.mean(values)) if values.size else NAN
