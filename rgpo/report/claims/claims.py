"""The paper's claims, each with the rule that judges it; the ledger is this list applied to results.

experiments/README.md records which rules were written before their data existed.

A new claim is an entry of CLAIMS: texts and a function Evidence -> Verdict. RGPO as the paper ran it is algo=rgpo (gate and
adaptive KL penalty), its baseline algo=ppo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np

from rgpo.report.read.columns import KL, KL_REF, PROXY, TIMES, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.read.rows import read_records
from rgpo.report.read.run import Problem
from rgpo.report.settings import Settings
from rgpo.report.stats import small_samples
from rgpo.report.stats.bootstrap import MIN_RUNS
from rgpo.report.stats.small_samples import Change, change
from rgpo.report.tables.baseline import baseline_of
from rgpo.report.tables.summary import setting, spike_rates
from rgpo.report.tables.table import between, plain
from rgpo.runtime.reader import Missing, Unreadable

REPRODUCED, REFUTED, UNTESTED = "reproduced", "not reproduced", "not testable here"


class Statement(NamedTuple):
    """One row of results/theory/verdicts.parquet: a statement of a claim, decided by an experiment of the theory."""

    claim: str
    setting: str
    measured: float
    verdict: str


@dataclass(frozen=True)
class Evidence:
    """Everything that was loaded: experiment -> groups, and the statements of the theory, None if they were not tested."""

    groups: Mapping[str, Sequence[Group]]
    settings: Settings
    theory: Sequence[Statement] | None = None

    def pairs(self, algo: str, baseline: str, *, language: bool = False) -> dict[str, tuple[Group, Group]]:
        """Task -> (group, baseline group) of the experiment with the most finished seeds in common, then the most iterations.

        Tasks with fewer than MIN_RUNS such seeds are left out.
        """
        best: dict[str, tuple[tuple[int, int], tuple[Group, Group]]] = {}
        for groups in self.groups.values():
            for task in sorted({group.task for group in groups if group.language == language}):
                both = baseline_of(task, groups, algo), baseline_of(task, groups, baseline)
                if both[0] is None or both[1] is None or both[0].provisional or both[1].provisional:
                    continue
                seeds = {run.seed for run in both[0].used} & {run.seed for run in both[1].used}
                size = len(seeds), both[0].used[0].num_iterations if both[0].used else 0
                if len(seeds) >= MIN_RUNS and (task not in best or size > best[task][0]):
                    best[task] = size, (both[0], both[1])
        return {task: pair for task, (_, pair) in best.items()}


class Verdict(NamedTuple):
    """The judgment of a claim, with our numbers and their setting."""

    outcome: str
    ours: str
    setting: str


class Claim(NamedTuple):
    """One row of the ledger."""

    id: str
    claim: str
    paper: str
    rule: str
    judge: Callable[[Evidence], Verdict]


def read_theory(results_dir: Path) -> tuple[list[Statement] | None, list[Problem]]:
    """The statements decided by the theory's experiments, None if there is no file, and a problem if it is damaged."""
    path = results_dir / "theory" / "verdicts.parquet"
    try:
        return [Statement(**record) for record in read_records(path, get_type_hints(Statement))], []
    except Missing:
        return None, []
    except Unreadable as error:
        return None, [Problem("theory", f"{error}; C1 to C4 are left out; make it again with `python -m experiments.theory`")]


def _theory(claim: str, evidence: Evidence) -> Verdict:
    """Decisions of the theory's experiments, statement by statement (docs/theory.md)."""
    if evidence.theory is None:
        return Verdict(UNTESTED, "no results of `python -m experiments.theory`", "–")
    rows = [row for row in evidence.theory if row.claim == claim]
    refuted = [row for row in rows if row.verdict == REFUTED]
    untested = [row for row in rows if row.verdict == UNTESTED]
    outcome = REFUTED if refuted else UNTESTED if untested or not rows else REPRODUCED
    held = sum(row.verdict == REPRODUCED for row in rows)
    failing = "; ".join(f"{row.setting} {row.measured:.3g}" for row in refuted)
    return Verdict(outcome, f"{held} of {len(rows)} statements hold" + (f"; not: {failing}" if failing else ""), "docs/theory.md")


def _relative(pair: tuple[Group, Group], column: str, evidence: Evidence, statistic: str = "final") -> Change:
    first, second = (group.by_seed(column, statistic) for group in pair)
    return change(first, second, evidence.settings.confidence)


def _percent(found: Change) -> str:
    return f"{found.percent:+.0f} % {between(found.percent_low, found.percent_high, 2, sign=True)}"


def _where(pairs: Mapping[str, tuple[Group, Group]]) -> str:
    """Setting and seeds, once if they are the same for every task."""
    found = []
    for group, base in pairs.values():
        n = len({run.seed for run in group.used} & {run.seed for run in base.used})
        found.append(f"{setting(group.used[0])}, {n} seed{'s' if n > 1 else ''}")
    return "; ".join(dict.fromkeys(found)) or "–"


def _on_par(tasks: Sequence[str], margin: float, evidence: Evidence) -> Verdict:
    pairs = {task: pair for task, pair in evidence.pairs("rgpo", "ppo").items() if task in tasks}
    found = {task: _relative(pair, TRAIN, evidence) for task, pair in pairs.items()}
    shown = ", ".join(f"{task} {_percent(c)}" for task, c in found.items() if c.num_pairs >= MIN_RUNS)
    inside = [-margin <= c.percent_low and c.percent_high <= margin for c in found.values()]
    outside = [c.percent_low > margin or c.percent_high < -margin for c in found.values()]
    if any(outside):
        return Verdict(REFUTED, shown, _where(pairs))
    done = len(found) == len(tasks) and all(inside)
    return Verdict(REPRODUCED if done else UNTESTED, shown or "not run with 3 seeds or more", _where(pairs))


def _gain(tasks: Mapping[str, float], evidence: Evidence) -> Verdict:
    """Relative changes of the return against the paper's, in percent."""
    pairs = {task: pair for task, pair in evidence.pairs("rgpo", "ppo").items() if task in tasks}
    found = {task: _relative(pair, TRAIN, evidence) for task, pair in pairs.items()}
    return _gains({task: (c, tasks[task]) for task, c in found.items()}, len(tasks), _where(pairs))


def _gains(found: Mapping[str, tuple[Change, float]], wanted: int, where: str) -> Verdict:
    """Reproduced if every interval excludes 0 on the paper's side and reaches its number; refuted if one stays short of it."""
    counted = {name: (c, goal) for name, (c, goal) in found.items() if c.num_pairs >= MIN_RUNS}
    shown = ", ".join(f"{name} {_percent(c)}" for name, (c, _) in counted.items())
    sides = [(np.sign(goal), c, abs(goal)) for c, goal in counted.values()]
    ends = [(*sorted((sign * c.percent_low, sign * c.percent_high)), goal) for sign, c, goal in sides]
    if any(high < goal for _, high, goal in ends):
        return Verdict(REFUTED, shown, where)
    done = len(ends) == wanted and all(low > 0 for low, _, _ in ends)
    return Verdict(REPRODUCED if done else UNTESTED, shown or "not run with 3 seeds or more", where)


def _language(column: str, goals: Mapping[str, float], evidence: Evidence) -> Verdict:
    """RGPO against each baseline, in every language task that was run."""
    found, pairs = {}, {}
    for baseline, goal in goals.items():
        for task, pair in evidence.pairs("rgpo", baseline, language=True).items():
            pairs[f"{task}, {baseline}"] = pair
            found[f"{task} against {baseline}"] = (_relative(pair, column, evidence), goal)
    return _gains(found, max(len(goals), len(found)), _where(pairs))


def _spread(limit: float, evidence: Evidence) -> Verdict:
    pairs = evidence.pairs("rgpo", "ppo")
    spreads = {}
    for task, (group, _) in pairs.items():
        values = group.values(TRAIN, "final")
        if values.size >= MIN_RUNS:
            spreads[task] = small_samples.coefficient_of_variation(values, evidence.settings.confidence)
    shown = ", ".join(f"{task} {plain(cv, 2)} % {between(low, high, 2)}" for task, (cv, low, high) in spreads.items())
    if any(low > limit for _, low, _ in spreads.values()):
        return Verdict(REFUTED, shown, _where(pairs))
    done = bool(spreads) and all(high <= limit for _, _, high in spreads.values())
    return Verdict(REPRODUCED if done else UNTESTED, shown or "not run with 3 seeds or more", _where(pairs))


def _kl_level(low: float, high: float, evidence: Evidence) -> Verdict:
    pairs = evidence.pairs("rgpo", "ppo")
    found = {}
    for task, (group, _) in pairs.items():
        values = group.values(KL, "mean")
        if values.size >= MIN_RUNS:
            found[task] = (float(values.mean()), *small_samples.student(values, evidence.settings.confidence)[:2])
    shown = ", ".join(f"{task} {plain(mean, 2)} {between(a, b, 2)}" for task, (mean, a, b) in found.items())
    if any(b < low or a > high for _, a, b in found.values()):
        return Verdict(REFUTED, shown, _where(pairs))
    done = bool(found) and all(low <= a and b <= high for _, a, b in found.values())
    return Verdict(REPRODUCED if done else UNTESTED, shown or "not run with 3 seeds or more", _where(pairs))


def _spiking(ours: float, theirs: float, evidence: Evidence) -> Verdict:
    pairs = evidence.pairs("rgpo", "ppo")
    seeds = {task: [spike_rates(group) for group in pair] for task, pair in pairs.items()}
    rates = {task: [100 * rate.mean(axis=0) for rate in both] for task, both in seeds.items() if all(map(len, both))}
    if not rates:
        return Verdict(UNTESTED, "not run", "–")
    both = np.array(list(rates.values()))  # (tasks, (rgpo, ppo), thresholds)
    holds = np.all((both[:, 0] <= ours) & (both[:, 1] >= theirs), axis=0)
    stated = evidence.settings.thresholds.index(evidence.settings.spike_threshold)
    at = int(np.argmax(holds)) if holds.any() else stated
    shown = ", ".join(f"{task} rgpo {plain(a[at], 2)} %, ppo {plain(b[at], 2)} %" for task, (a, b) in rates.items())
    text = f"above {evidence.settings.thresholds[at]:g} nats: {shown}"
    return Verdict(REPRODUCED if holds.any() else REFUTED, text, _where(pairs))


def _cheap(margin: float, evidence: Evidence) -> Verdict:
    pairs = evidence.pairs("rgpo", "ppo")
    found = {task: _relative(pair, TIMES["update"], evidence, "median") for task, pair in pairs.items()}
    found = {task: c for task, c in found.items() if c.num_pairs >= MIN_RUNS}
    shown = ", ".join(f"{task} {_percent(c)}" for task, c in found.items())
    if any(c.percent_low > margin for c in found.values()):
        return Verdict(REFUTED, shown, _where(pairs))
    done = bool(found) and all(c.percent_high <= margin for c in found.values())
    return Verdict(REPRODUCED if done else UNTESTED, shown or "not run with 3 seeds or more", _where(pairs))


_GAIN_RULE = "reproduced if every interval excludes 0 and reaches the paper's number; not if one stays short of it"
_STATEMENTS = "reproduced if every statement that it makes is, each by the rule beside it in docs/theory.md; not if one is not"
CLAIMS = (
    Claim("C1", "gradient variance is bounded under heavy-tailed ratios", "[P]", _STATEMENTS, partial(_theory, "C1")),
    Claim("C2", "TRPO, PPO, REINFORCE are choices of w(r)", "[P]", _STATEMENTS, partial(_theory, "C2")),
    Claim("C3", "bias is bounded and controllable", "[P]", _STATEMENTS, partial(_theory, "C3")),
    Claim("C4", "approximate monotonic improvement", "[P]", _STATEMENTS, partial(_theory, "C4")),
    Claim(
        "C5",
        "costs what PPO costs: change of an update's wall time",
        "equal [P]",
        "reproduced if no interval passes +10 %; not if one lies above",
        partial(_cheap, 10.0),
    ),
    Claim(
        "C6",
        "return on HalfCheetah and Hopper on par with PPO",
        "on par [Q]",
        "reproduced if both intervals of the change lie within 20 % of 0; not if one lies outside",
        partial(_on_par, ("halfcheetah", "hopper"), 20.0),
    ),
    Claim(
        "C6",
        "return on Walker2d and Ant above PPO's",
        "+81 %, +47 % [Q]",
        _GAIN_RULE,
        partial(_gain, {"walker2d": 81.0, "ant": 47.0}),
    ),
    Claim(
        "C7",
        "coefficient of variation over seeds",
        "≤ 27 % [Q]",
        "reproduced if every interval ends at or below 27 %; not if one begins above",
        partial(_spread, 27.0),
    ),
    Claim(
        "C8",
        "KL per update about 0.02 nats (our penalty's target is 0.02)",
        "0.02 [Q]",
        "reproduced if every interval lies in [0.01, 0.03]; not if one lies outside",
        partial(_kl_level, 0.01, 0.03),
    ),
    Claim(
        "C8",
        "KL-spike rate",
        "0 %, PPO 44-84 % [Q]",
        "reproduced if at some threshold of the sweep RGPO has at most 5 % and PPO at least 44 % in every task; else not",
        partial(_spiking, 5.0, 44.0),
    ),
    Claim(
        "C9",
        "reward (change of the proxy against the reference) above PPO-RLHF's",
        "+14.8 % [P], at 1.5 B",
        _GAIN_RULE,
        partial(_language, PROXY, {"ppo": 14.8}),
    ),
    Claim(
        "C10",
        "KL to the reference below PPO-RLHF's and GRPO's",
        "-16.0 %, -53.1 % [P], at 1.5 B",
        _GAIN_RULE,
        partial(_language, KL_REF, {"ppo": -16.0, "grpo": -53.1}),
    ),
)
