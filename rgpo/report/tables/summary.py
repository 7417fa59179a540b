"""An experiment's numbers per task and algorithm (returns or rewards, KL, spikes, cost), and one row per run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rgpo.report.read.columns import (
    CUT,
    EVAL,
    GOLD,
    ITERATION,
    KL,
    KL_REF,
    LENGTH,
    PROXY,
    SPEED,
    TIMES,
    TOKENS,
    TRAIN,
    TRUNCATED,
)
from rgpo.report.read.groups import Group, distinguishing_keys
from rgpo.report.read.run import Problem, Run
from rgpo.report.settings import Settings
from rgpo.report.stats import bootstrap, small_samples
from rgpo.report.stats.bootstrap import MIN_RUNS, NAN, Floats, Interval, Strata
from rgpo.report.tables.table import Cell, Column, Table, estimate, interval_cells, number, plain, word
from rgpo.runtime.reader import printable

MAX_SHOWN = 1000  # most characters of a config value
START = (word("task", "task"), word("label", "algorithm"), number("n", "n"))  # first columns of every table of groups


def returns(groups: Sequence[Group], settings: Settings) -> Table:
    """Table for control tasks: return, its spread over seeds, KL per update and spikes."""
    rows = []
    for group in groups:
        final = group.values(TRAIN, "final")
        cv = Interval(*small_samples.coefficient_of_variation(final, settings.confidence))
        cv = cv if math.isfinite(cv.high) else Interval(cv.value, NAN, NAN)
        rows.append(
            _start(group, len(final) or len(group.used))
            | _estimate("return", group, final, settings)
            | _estimate("iqm", group, final, settings, bootstrap.aggregate_iqm)
            | _estimate("eval", group, group.values(EVAL, "last"), settings)
            | interval_cells("cv", cv)
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
        "episode ended, then over n seeds. IQM: interquartile mean over seeds (equal to the mean for 3 seeds). Return (eval): "
        "last deterministic evaluation. CV: standard deviation over |mean| of return (train), with Vangel's interval from 10 "
        "seeds. "
        f"{_cut(groups)}{_intervals(settings)}"
    )
    return Table("returns", "Returns", caption, columns, tuple(rows), "task")


def _cut(groups: Sequence[Group]) -> str:
    """A sentence about truncated evaluation episodes."""
    tasks = dict.fromkeys(group.task for group in groups if group.values(CUT, "last").size)
    if not tasks:
        return ""
    return f"Evaluation episodes of {', '.join(tasks)} were cut after 10,000 steps: return (eval) is not that of whole episodes. "


def rewards(groups: Sequence[Group], settings: Settings) -> Table:
    """Table for language tasks: reward relative to the reference policy (proxy and gold), KL to the reference, lengths."""
    rows = []
    for group in groups:
        row = _start(group, len(group.values(PROXY, "final")) or len(group.used))
        for key, column in (("proxy", PROXY), ("gold", GOLD), ("kl_ref", KL_REF), ("length", LENGTH)):
            row |= _estimate(key, group, group.values(column, "final"), settings)
        row["truncated"] = 100 * _mean(group.values(TRUNCATED, "final"))
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
        f"{100 * settings.final_fraction:g} % of a run's evaluations, then over n seeds; proxy: the reward model used "
        "in training, gold: one that training never uses. KL to reference: KL(policy || reference) of a whole "
        f"completion on held-out prompts. {_intervals(settings)}"
    )
    return Table("rewards", "Rewards and KL", caption, columns, tuple(rows), "task")


def reward_terms(groups: Sequence[Group], settings: Settings) -> Table:
    """Table for language tasks: each named reward term, unweighted."""
    rows = []
    for group in groups:
        for name in dict.fromkeys(name for run in group.used for name in run.reward_terms):
            train = group.values(f"reward/{name}_mean", "final")
            row: dict[str, Cell] = {**_start(group, len(train) or len(group.used)), "term": name}
            row |= _estimate("train", group, train, settings)
            row |= _estimate("eval", group, group.values(f"reward/eval_{name}_mean", "final"), settings)
            row |= _estimate("change", group, group.values(f"reward/eval_{name}_change", "final"), settings)
            rows.append(row)
    columns = (
        *START,
        word("term", "term"),
        estimate("train", "training"),
        estimate("eval", "held out"),
        estimate("change", "Δ held out", sign=True),
    )
    caption = (
        "Unweighted scores of the reward's terms (task.reward), mean over the last "
        f"{100 * settings.final_fraction:g} % of a run's iterations (training) or evaluations (held out), then over n seeds. "
        f"Δ: policy minus reference on the same prompts. {_intervals(settings)}"
    )
    return Table("reward_terms", "Terms of the reward", caption, columns, tuple(rows), "task")


def spikes(groups: Sequence[Group], settings: Settings) -> Table:
    """Table of the share of updates whose KL exceeds each threshold."""
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
    caption = "Percentage of updates with KL(old || new) above each threshold (nats), mean over n seeds."
    return Table("spikes", "KL spikes by threshold", caption, columns, tuple(rows), "task")


def cost(groups: Sequence[Group], settings: Settings) -> Table:
    """Table of wall time: steps per second, seconds per phase of an iteration, hours per run."""
    rows = []
    for group in groups:
        per_iteration = group.by_seed(ITERATION, "median")
        row = _start(group, len(per_iteration) or len(group.used))
        row |= _estimate("speed", group, group.values(SPEED, "median"), settings)
        tokens = [value / per_iteration[s] for s, value in group.by_seed(TOKENS, "mean").items() if s in per_iteration]
        row["tokens"] = float(np.mean(tokens)) if tokens else NAN
        row |= {phase: _mean(group.values(column, "median")) for phase, column in TIMES.items()}
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
        number("hours", "hours per run"),
    )
    caption = (
        "Wall time on the machines named under Provenance, which may have had other work. Steps/s: environment steps over "
        "collect, update and diagnostics time. All but hours: median over a run's iterations, mean over n seeds; evaluate: over "
        f"iterations with an evaluation. {_intervals(settings)}"
    )
    return Table("cost", "Cost", caption, columns, tuple(rows), "task")


def run_table(groups: Sequence[Group]) -> Table:
    """Table with one row per run and the config keys that vary."""
    runs = [run for group in groups for run in group.runs]
    algos = {run.algo for run in runs}
    keys = sorted({key for algo in algos for key in distinguishing_keys([run for run in runs if run.algo == algo])})
    language = any(group.language for group in groups)
    column, title = (PROXY, "Δ reward, proxy") if language else (TRAIN, "return (train)")
    rows = []
    for group in groups:
        for run in group.runs:
            row: dict[str, Cell] = {"task": run.task, "algo": run.algo, "label": group.label, "seed": run.seed}
            row |= {key: printable(str(run.config.get(key, "")), MAX_SHOWN) for key in keys}
            row |= {"status": _status(run, run in group.used), "progress": f"{run.reached}/{run.num_iterations}"}
            row |= {"final": run.number(column, "final"), "kl": run.number(KL, "mean")}
            row |= {"hours": run.number(ITERATION, "sum") / 3600}
            row |= {"commit": run.provenance.commit[:10] + ("-dirty" if run.provenance.dirty else ""), "reason": run.reason}
            rows.append(row | {"run_id": run.run_id})
    columns = [word("task", "task"), word("algo", "algorithm"), number("seed", "seed")]
    columns += [word(key, key.removeprefix("choices.")) for key in keys]
    columns += [word("status", "status"), word("progress", "iterations"), number("final", title, 4), number("kl", "KL, nats")]
    columns += [number("hours", "hours"), word("commit", "commit"), word("run_id", "run")]
    caption = "Every readable run with the settings that vary; * marks the runs that enter means."
    if not all(run.exact for run in runs):
        caption += " Not bit for bit: a resume could not restore open episodes, which began anew."
    return Table("runs", "Runs", caption, tuple(columns), tuple(rows), "task")


def _status(run: Run, used: bool) -> str:
    return run.status + " *" * used + ", not bit for bit" * (not run.exact)


def missing_metrics(groups: Sequence[Group]) -> list[Problem]:
    """Problems of runs that lack one of the tables' metrics, although other runs of their task have it."""
    problems = []
    for task in sorted({group.task for group in groups}):
        runs = [run for group in groups if group.task == task for run in group.runs]
        for column in (TRAIN, KL, PROXY, GOLD, KL_REF):
            lacking = [run for run in runs if not run.has(column) and run.status != "running"]
            if len(lacking) < len(runs) and any(run.has(column) for run in runs):
                why = f"{column} was never measured; the run is left out where it is needed"
                problems += [Problem(run.where, why) for run in lacking]
    return problems


def spike_rates(group: Group) -> Floats:
    """Share of updates above each threshold (S, K), for the runs that measured KL."""
    found = [run.reduced.spike_rates for run in group.used if run.has(KL)]
    return np.array(found) if found else np.empty((0, 0))


def setting(run: Run) -> str:
    """A run's scale and planned length as text: "300k steps", "embedded, 200 iterations"."""
    if run.scale != "none":
        return f"{run.scale}, {run.num_iterations} iterations"
    steps = run.config.get("total_env_steps")
    if not isinstance(steps, int) or run.config.get("num_iterations"):
        return f"{run.num_iterations} iterations"
    return f"{plain(steps / 1e6)}M steps" if steps >= 1_000_000 else f"{plain(steps / 1e3)}k steps"


def _start(group: Group, n: int) -> dict[str, Cell]:
    return {"task": group.task, "algo": group.algo, "label": group.label, "scale": group.scale, "n": n}


def _end(group: Group, settings: Settings) -> dict[str, Cell]:
    """KL per update, spikes, and a note on runs that are unfinished or left out."""
    rates = spike_rates(group)
    level = settings.thresholds.index(settings.spike_threshold)
    row: dict[str, Cell] = {**_estimate("kl", group, group.values(KL, "mean"), settings)}
    row["kl_median"] = _mean(group.values(KL, "median"))
    row |= _estimate("spikes", group, 100 * rates[:, level] if len(rates) else np.empty(0), settings)
    return row | {"note": _note(group)}


def _end_columns(settings: Settings) -> tuple[Column, ...]:
    shown = f"KL > {settings.spike_threshold:g}, %"
    return estimate("kl", "KL per update, nats"), estimate("spikes", shown), word("note", "note")


def _note(group: Group) -> str:
    reached = sorted({run.reached for run in group.used})
    if group.provisional:
        span = f"{reached[0]}" if len(reached) == 1 else f"{reached[0]} to {reached[-1]}"
        return f"provisional: none finished, at iteration {span} of {group.used[0].num_iterations}"
    left = len(group.runs) - len(group.used)
    return f"{left} run{'s' if left > 1 else ''} not counted" if left else ""


def _estimate(
    key: str,
    group: Group,
    values: Floats,
    settings: Settings,
    statistic: Callable[[Strata], Floats] = bootstrap.aggregate_mean,
) -> dict[str, float]:
    """A statistic over seeds with its bootstrap interval, as key, key_low and key_high."""
    rng = bootstrap.generator(settings.seed, group.task, group.label, key)
    found = bootstrap.estimate([values], statistic, rng, num_resamples=settings.num_resamples, confidence=settings.confidence)
    return interval_cells(key, found)


def _intervals(settings: Settings) -> str:
    return (
        f"Brackets: {100 * settings.confidence:g} % percentile bootstrap over seeds ({settings.num_resamples} resamples), none "
        f"for n < {MIN_RUNS}; with 3 to 5 seeds they are too narrow (they cover 75 to 85 % for normal values), unlike the "
        "intervals of the comparisons."
    )


def _mean(values: Floats) -> float:
    return float(np.mean(values)) if values.size else NAN
