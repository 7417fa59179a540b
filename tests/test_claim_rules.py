"""Rules of verdicts: each decides as it should, and its null arm does not pass."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixtures as fixtures
from claim_fixtures import CLAIM, GAIN, RETURN, claim, verdict, write

from rgpo.report.claims.claim import read_claim
from rgpo.report.claims.evidence import Sample
from rgpo.report.claims.external import Anchor
from rgpo.report.claims.rules import OPEN, Gain, Level, OfNumbers, Parity, Rate, fewest
from rgpo.report.claims.theory import Decided, Round, Theory
from rgpo.report.claims.verdict import CONTRADICTED, REPRODUCED, UNDECIDED, UNTESTED, judge
from rgpo.report.stats.independent import MAX_RUNS, Summary
from rgpo.report.tables.matched import read_off

KL_LEVEL = {"kind": "level", "metric": "kl/old_exact", "statistic": "mean", "low": 0.01, "high": 0.03}


def levels(here: Path, task: str = "hopper", seeds: int = 3, **by_algo: Mapping[str, Any]) -> None:
    """Runs of each algorithm whose columns are constant, apart from a little noise over seeds."""
    for algo, columns in by_algo.items():
        for seed in range(1, seeds + 1):
            noise = 1 + 0.01 * np.random.default_rng([seed, len(algo)]).normal()
            metrics = {name: np.full(20, value) * noise for name, value in columns.items()}
            write(here, algo, seed, final=1000.0, task=task, metrics=metrics)


SPIKES = {"kind": "rate", "metric": "kl/old_exact", "above": 0.04, "at_most": 5, "baseline_at_least": 44}
SPREAD = {"kind": "level", **RETURN, "over_seeds": "cv", "high": 27.0}


def returns(**by_algo: float) -> dict[str, dict[str, float]]:
    return {algo: {"return/train_mean": value} for algo, value in by_algo.items()}


def kls(**by_algo: Any) -> dict[str, dict[str, Any]]:
    return {algo: {"kl/old_exact": value} for algo, value in by_algo.items()}


SPIKING = np.where(np.arange(20) % 5 < 3, 0.06, 0.01)
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("a gain of the paper's size", GAIN, returns(rgpo=1500.0, ppo=1000.0, trpo=1000.0), REPRODUCED),
    ("a null arm that gains as much", GAIN, returns(rgpo=1500.0, ppo=1000.0, trpo=1500.0), UNDECIDED),
    ("a gain far below the paper's", GAIN, returns(rgpo=1100.0, ppo=1000.0, trpo=1000.0), CONTRADICTED),
    ("a loss", GAIN, returns(rgpo=700.0, ppo=1000.0, trpo=1000.0), CONTRADICTED),
    ("no null arm", GAIN, returns(rgpo=1500.0, ppo=1000.0), UNDECIDED),
    ("no baseline", GAIN, returns(rgpo=1500.0, trpo=1000.0), UNTESTED),
    ("out of the margin", CLAIM["rule"], returns(rgpo=1500.0, ppo=1000.0, trpo=10.0), CONTRADICTED),
    ("a level that the null arm does not have", KL_LEVEL, kls(rgpo=0.02, ppo=0.01, trpo=0.2), REPRODUCED),
    ("a level that the penalty alone keeps", KL_LEVEL, kls(rgpo=0.02, ppo=0.01, trpo=0.02), UNDECIDED),
    ("another level", KL_LEVEL, kls(rgpo=0.05, ppo=0.01, trpo=0.2), CONTRADICTED),
    ("spikes of the baseline alone", SPIKES, kls(rgpo=0.01, ppo=SPIKING, trpo=SPIKING), REPRODUCED),
    ("spikes that the penalty alone removes", SPIKES, kls(rgpo=0.01, ppo=SPIKING, trpo=0.01), UNDECIDED),
    ("a baseline without spikes", SPIKES, kls(rgpo=0.01, ppo=0.01, trpo=SPIKING), CONTRADICTED),
]


@pytest.mark.parametrize(("rule", "columns", "outcome"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_rules_and_their_null_arms(rule: dict[str, Any], columns: dict[str, Any], outcome: str, here: Path) -> None:
    levels(here, **columns)
    found = verdict(here, claim(here, rule=rule, arms=arms_for(rule)))
    assert found.outcome == outcome, found


def arms_for(rule: dict[str, Any]) -> dict[str, Any]:
    return {"treatment": {"algo": "rgpo"}} if rule["kind"] == "level" else CLAIM["arms"]


RULES = [
    (Parity("x", "mean", margin=20), Summary(105, 60, 5), Summary(100, 60, 5)),
    (Parity("x", "mean", margin=20), Summary(70, 20, 5), Summary(100, 20, 5)),
    (Parity("x", "mean", margin=20), Summary(105, 5, 5), Summary(100, 60, 5)),
    (Gain("x", "mean", paper={"hopper": 20.0}, paper_error=10), Summary(100, 5, 5), Summary(100, 5, 5)),
    (Gain("x", "mean", paper={"hopper": 50.0}), Summary(130, 78, 5), Summary(100, 60, 5)),
    (Level("x", "mean", low=0.9), Summary(0.85, 0.2, 5), Summary(0, 0, 0)),
    (Level("x", "mean", high=27.0, over_seeds="cv"), Summary(100, 35, 10), Summary(0, 0, 0)),
    (Rate("x", above=0.04, at_most=5, baseline_at_least=44), Summary(0.06, 0.02, 5), Summary(0.9, 0.1, 5)),
]


@pytest.mark.parametrize(("rule", "x", "y"), RULES, ids=[f"{type(case[0]).__name__}{i}" for i, case in enumerate(RULES)])
def test_the_number_of_seeds_that_would_decide_is_found_with_the_rule_itself(rule: OfNumbers, x: Summary, y: Summary) -> None:
    arms = [Sample(anchor=Anchor(found.mean, found.sd, found.n)) for found in (x, y)]

    def outcome(n: int) -> str:
        return rule.decide("hopper", x._replace(n=n), y._replace(n=n), False, 0.95)[0]

    n = fewest(lambda n: outcome(n) != OPEN, x.n)
    assert outcome(x.n) == OPEN and x.n < n <= MAX_RUNS
    assert outcome(n) != OPEN and outcome(n - 1) == OPEN
    assert rule.judge("hopper", arms[0], arms[1], 0.95).n == 0  # published numbers do not gain seeds


def test_a_spread_needs_ten_seeds(here: Path) -> None:
    levels(here, **returns(rgpo=1000.0))
    for seed in (1, 2, 3):
        write(here, "trpo", seed, final=10.0**seed)
    path = claim(here, rule=SPREAD, arms=arms_for(SPREAD))
    found = verdict(here, path)
    assert found.outcome == UNDECIDED and "[0, ∞]" in found.ours and "10 seeds per arm would decide" in found.ours
    for seed in range(4, 11):
        write(here, "rgpo", seed, final=1000.0 + seed), write(here, "trpo", seed, final=10.0 ** (seed % 4))
    found = verdict(here, claim(here, rule=SPREAD, arms=arms_for(SPREAD), evidence={"seeds": 10}))
    assert found.outcome == REPRODUCED and "null arm: hopper" in found.ours


def frontier(here: Path, gain: Mapping[str, float], reach: Mapping[str, float]) -> None:
    """Language runs whose proxy is gain times sqrt(KL), up to a KL of their own."""
    for algo, factor in gain.items():
        for seed in (1, 2, 3):
            kl = reach[algo] * np.linspace(0.05, 1, 20)
            columns = {"kl/eval_ref_sequence": kl, "reward/eval_proxy_change": factor * (1 + 0.01 * seed) * np.sqrt(kl)}
            fixtures.write_run(here / "results", "qwen_rlhf", algo, seed, 20, metrics=columns, scale="embedded")


@pytest.mark.parametrize(
    ("gain", "outcome"),
    [
        ({"rgpo": 1.3, "ppo": 1.0, "trpo": 1.0}, REPRODUCED),
        ({"rgpo": 1.3, "ppo": 1.0, "trpo": 1.3}, UNDECIDED),
        ({"rgpo": 1.0, "ppo": 1.0, "trpo": 1.0}, UNDECIDED),
        ({"rgpo": 0.7, "ppo": 1.0, "trpo": 1.0}, CONTRADICTED),
    ],
)
def test_rewards_are_compared_at_equal_kl(gain: Mapping[str, float], outcome: str, here: Path) -> None:
    """PPO ends at four times the KL and twice the reward; at equal KL only the factor counts."""
    frontier(here, gain, {"rgpo": 5.0, "ppo": 20.0, "trpo": 6.0})
    rule = {"kind": "dominance", "x": "kl/eval_ref_sequence", "y": "reward/eval_proxy_change"}
    found = verdict(here, claim(here, rule=rule, evidence={"tasks": ["qwen_rlhf (embedded)"]}))
    assert found.outcome == outcome, found
    assert "at 5.0" in found.ours


@pytest.mark.parametrize(("factor", "outcome"), [(1.3, REPRODUCED), (0.7, CONTRADICTED)])
def test_a_path_leads_through_the_ends_of_a_seeds_runs(factor: float, outcome: str, here: Path) -> None:
    """Each run's own path has a KL of 20 and no reward; the ends, at KL 1, 4 and 9, have what its algorithm earns there."""
    for algo, slope in {"rgpo": factor, "ppo": 1.0, "trpo": 1.0}.items():
        for seed in (1, 2, 3):
            for coef, kl in {0.1: 9.0, 0.2: 4.0, 0.4: 1.0}.items():
                end = slope * (1 + 0.01 * seed) * np.sqrt(kl)
                columns = {"kl/eval_ref_sequence": np.full(20, 20.0), "reward/eval_proxy_change": np.zeros(20)}
                columns["kl/eval_ref_sequence"][-2:], columns["reward/eval_proxy_change"][-2:] = kl, end  # the last tenth
                config = {"penalty": {"coef": coef}}
                fixtures.write_run(here / "results", "qwen_rlhf", algo, seed, 20, metrics=columns, scale="embedded", **config)
    rule = {"kind": "dominance", "x": "kl/eval_ref_sequence", "y": "reward/eval_proxy_change"}
    evidence = {"tasks": ["qwen_rlhf (embedded)"], "over": ["penalty.coef"]}
    found = verdict(here, claim(here, rule=rule, evidence=evidence))
    assert found.outcome == outcome and "at 9.0" in found.ours and "3 seeds" in found.setting, found
    shutil.rmtree(next(run for run in (here / "results").glob("*/*") if "rgpo-s2" in run.name))
    found = verdict(here, claim(here, rule=rule, evidence=evidence))
    assert found.outcome == UNDECIDED and "without all of seed 2 of 3" in found.ours, found


def test_a_path_is_read_where_it_first_reaches_the_level() -> None:
    x, y = np.array([0.0, 2.0, 1.0, 4.0]), np.array([0.0, 4.0, 7.0, 10.0])
    assert [read_off(x, y, level) for level in (1.0, 2.0, 3.0, 4.0)] == [2.0, 4.0, 9.0, 10.0]
    with pytest.raises(ValueError, match="ends at 4"):
        read_off(x, y, 5.0)


def test_cost_is_the_ratio_of_interleaved_rounds(here: Path) -> None:
    """The load doubles from round to round, and the ratio does not notice."""
    rule = {"kind": "cost_ratio", "algo": "rgpo", "baseline": "ppo", "tasks": ["control"], "at_most": 1.1, "rounds": 9}
    loaded = read_claim(claim(here, rule=rule, evidence=None, arms=None, null_arm=None), [], {})
    for factor, outcome in ((1.0, REPRODUCED), (1.3, CONTRADICTED)):
        times = {"ppo": [2.0**i for i in range(9)], "rgpo": [2.0**i * (factor + 0.01 * (i % 3)) for i in range(9)]}
        rounds = [Round("control", algo, i, cpu_s) for algo, found in times.items() for i, cpu_s in enumerate(found)]
        assert judge(loaded, [], Theory(rounds=rounds), {}).outcome == outcome
    more = [row._replace(round=row.round + 9, cpu_s=1.0) for row in rounds]
    for wrong in ([*rounds, *more], [*rounds, rounds[0]._replace(cpu_s=9.0)], [*rounds[1:], rounds[0]._replace(cpu_s=np.inf)]):
        assert judge(loaded, [], Theory(rounds=wrong), {}).outcome == UNDECIDED
    found = judge(loaded, [], Theory(rounds=[row for row in rounds if row.round < 8]), {})
    assert found.outcome == UNDECIDED and "control: 8 of 9 rounds" in found.ours


def test_statements_are_named_and_whole(here: Path) -> None:
    rows = [
        Decided("T1", "a", 1.0, "reproduced"),
        Decided("T1", "b", 1.0, "reproduced"),
        Decided("T1 (ours)", "c", 2.0, "not reproduced"),
    ]

    def outcome(theory: Theory, name: str = "T1", settings: Sequence[str] = ("a", "b")) -> tuple[str, str]:
        rule = {"kind": "statements", "claim": name, "settings": list(settings)}
        loaded = read_claim(claim(here, rule=rule, evidence=None, arms=None, null_arm=None), [], {})
        return judge(loaded, [], theory, {})[:2]

    assert outcome(Theory(rows)) == (REPRODUCED, "2 of 2 statements hold")
    assert outcome(Theory(rows), "T1 (ours)", ["c"]) == (CONTRADICTED, "0 of 1 statements hold; not: c 2.00")
    assert outcome(Theory(rows[1:])) == (UNDECIDED, "1 of 2 statements hold; missing: a")
    assert outcome(Theory([row._replace(claim="T2") for row in rows]))[0] == UNDECIDED
    assert outcome(Theory([*rows, rows[0]._replace(setting="d")])) == (
        UNDECIDED,
        "2 of 2 statements hold; not among the claim's: d",
    )
    assert outcome(Theory([*rows, rows[0]._replace(verdict="not reproduced")]))[0] == UNDECIDED
    assert outcome(Theory([rows[0]._replace(measured=np.nan), rows[1]]))[0] == UNDECIDED
    assert outcome(Theory())[0] == UNTESTED
    found = judge(read_claim(here / "mine" / "T1.yaml", [], {}), [], Theory(rows, version="abc: unchanged"), {})
    assert found.version == "abc: unchanged"
