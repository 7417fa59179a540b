"""The experiments of the theory against closed forms, and the page and the ledger rows against the tables they come from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.theory import (
    common,
    cost,
    drift,
    gradient_variance,
    heavy_tail,
    improvement,
    page,
    sharpness,
    squared_error,
)
from experiments.theory.__main__ import NAMES, experiment, load_tables, main
from experiments.theory.batch import FILE, load_batch
from rgpo.core.gate import weight

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "theory"


# heavy tails


def test_growth_is_the_exponent_of_a_power_law() -> None:
    n = np.array([1e2, 1e3, 1e4])
    rows = [("pareto", 1.5, "x", int(m), seed, 7 * (1 + seed) * m**0.4) for seed in range(3) for m in n]
    table = pd.DataFrame(rows, columns=["family", "tail_index", "arm", "n", "seed", "variance"])
    assert heavy_tail.growth(table, "pareto", 1.5, "x") == pytest.approx((0.4, 0.4, 0.4))


def test_errors_of_truncation_are_those_of_a_truncated_pareto() -> None:
    """E min(r, c) = 1 - x^a c^(1-a)/(a-1) and E min(r, c)^2 = x^2 + 2 x^a (c^(2-a) - x^(2-a))/(2-a), x = (a-1)/a."""
    a = 1.5
    x = (a - 1) / a
    table = squared_error.table_of_errors({("pareto", 1.5): heavy_tail.laws()["pareto", 1.5]}, num=5)
    rows = table[table.estimator == "truncation"]
    assert len(rows) == 5
    for row in rows.itertuples():
        c = row.parameter
        first = 1 - x**a * c ** (1 - a) / (a - 1)
        second = x**2 + 2 * x**a * (c ** (2 - a) - x ** (2 - a)) / (2 - a)
        assert row.bias == pytest.approx(0.5 * first - 0.5, rel=1e-6)
        assert row.variance == pytest.approx(2 * second - (0.5 * first) ** 2, rel=1e-6)
    plain = table[table.estimator == "IS"].iloc[0]
    assert plain.bias == pytest.approx(0, abs=1e-6)
    assert plain.variance == math.inf


def test_the_best_parameter_is_the_one_that_brute_force_finds() -> None:
    table = squared_error.table_of_errors({("pareto", 1.5): heavy_tail.laws()["pareto", 1.5]}, num=5)
    error, parameter = squared_error.best_errors(table, "pareto", 1.5, np.array([50.0]))["gate"]
    rows = table[table.estimator == "gate"]
    by_hand = {row.parameter: math.sqrt(row.bias**2 + row.variance / 50) for row in rows.itertuples()}
    assert parameter[0] == min(by_hand, key=lambda k: by_hand[k])
    assert error[0] == pytest.approx(min(by_hand.values()))


# improvement


def test_the_performance_difference_lemma() -> None:
    """J(new) - J(old) = E_rho_new,new[A_old] (Kakade & Langford 2002), and A_old has mean 0 under the old policy."""
    rng = np.random.default_rng(3)
    mdp = improvement.random_mdp(rng)
    old, new = rng.dirichlet(np.ones(improvement.NUM_ACTIONS), (2, improvement.NUM_STATES))
    exact, after = improvement.solve(mdp, old), improvement.solve(mdp, new)
    assert exact.measure.sum() == pytest.approx(1 / (1 - improvement.GAMMA))
    np.testing.assert_allclose((old * exact.advantage).sum(1), 0, atol=1e-12)
    assert after.objective - exact.objective == pytest.approx(float(after.measure @ (new * exact.advantage).sum(1)))


def test_repaired_bounds_hold_and_the_naive_one_does_not() -> None:
    table = improvement.measure(smoke=True)["bounds"]
    for bound in ("repaired, CPO's term", "repaired, TRPO's term", "pessimistic, CPO's term", "pessimistic, TRPO's term"):
        assert improvement.violations(table, bound, 10.0) == (0, 100)
    for bound in ("naive", "ratio, no occupancy term", "repaired, no occupancy term", "pessimistic, no occupancy term"):
        assert improvement.violations(table, bound, 10.0)[0] > 5
    for bound in ("divided by w(1)", "proved"):
        assert all(improvement.violations(table, bound, k) == (0, 100) for k in improvement.SHARPNESS)


def test_the_constant_of_the_raw_gates_bound() -> None:
    """E_old|h - r| <= M_k KL(old || new) in every state, and the capped curve exceeds min(r A, h A) by the stated surplus."""
    found = [improvement.surrogate_constant(k) for k in improvement.SHARPNESS]
    assert found == pytest.approx([1.2554, 1.7245, 3.2615], abs=1e-3)
    rng = np.random.default_rng(0)
    for k, constant in zip(improvement.SHARPNESS, found, strict=True):
        old, new = rng.dirichlet(np.ones(4), (2, 500))
        h = 1 + 2 / k * np.tanh(k * (new / old - 1) / 2)
        assert ((old * np.abs(h - new / old)).sum(1) <= constant * (old * np.log(old / new)).sum(1) + 1e-12).all()
    gate, r = common.load_gate("sign_aware_sigmoid"), np.array([0.5, 1.0, 2.0, 4.0, 9.0])
    ran = -gate(torch.log(torch.tensor(r)), torch.full((5,), -1.0, dtype=torch.float64)).numpy()
    pessimistic = np.minimum(-r, -(1 + 0.2 * np.tanh(5 * (r - 1))))
    surplus = np.where(r > improvement.CAP, r - improvement.CAP * (1 + np.log(np.maximum(r, 1e-9) / improvement.CAP)), 0)
    np.testing.assert_allclose(ran, pessimistic + surplus, atol=1e-6)


def test_the_counter_example_defeats_any_penalty() -> None:
    """old (1/2, 1/2), A = (1, -1): E[g A] = tanh(k t)/2 by the gate itself; for k = 10 it beats 2 t + C KL at small t."""
    t, k = 1e-4, 10.0
    d = torch.log(torch.tensor([1 + 2 * t, 1 - 2 * t], dtype=torch.float64))
    g = common.load_gate("sigmoid", sharpness=k)(d, torch.tensor([1.0, -1.0]))
    surrogate = float(0.5 * (g[0] - g[1]))
    assert surrogate == pytest.approx(math.tanh(k * t) / 2, rel=1e-9)
    kl = -0.5 * math.log(1 - 4 * t**2)
    assert surrogate - 1000 * kl > 2 * t


# drift


def test_sided_gates_are_the_gates_they_are_made_of() -> None:
    d = torch.linspace(-1, 1, 201, dtype=torch.float64)
    for sign in (1.0, -1.0):
        a = torch.full_like(d, sign)
        both, literal = drift.Sided(), common.load_gate("sigmoid", scale="unit")
        torch.testing.assert_close(weight(both, d, a), weight(literal, d, a))
        torch.testing.assert_close(weight(drift.Sided(wrong=False), d, a), weight(common.load_gate("sign_aware_sigmoid"), d, a))
        torch.testing.assert_close(weight(drift.Sided(progress=False, wrong=False), d, a), d.exp())


def test_muting_the_wrong_side_makes_the_policy_drift() -> None:
    final = {}
    for name in drift.FACTORIAL:
        policy, batch = load_batch()
        kl = drift.adam(drift.arms()[name], policy, batch, 5, 0)[-1]
        torch.testing.assert_close(kl, policy.measure_shift(batch).kl)
        final[name] = kl.mean().item()
    assert final["progress side"] < 0.02 < final["both sides"] < final["wrong side"]
    assert final["progress side"] < 0.1 * final["no gate"] < 0.1 * final["wrong side"]


def test_the_fixed_batch_is_small_and_its_ratio_is_one() -> None:
    assert FILE.stat().st_size < 2_000_000
    policy, batch = load_batch()
    assert batch.view.observation.shape == (2048, 11)
    assert policy.measure_shift(batch).kl.abs().max() < 1e-12


# cost


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of the resident set is Linux's")
def test_peak_memory_sees_what_an_update_allocates() -> None:
    def small() -> object:
        return lambda: None

    def large() -> object:
        return lambda: torch.ones(2**24)  # 64 MiB

    assert cost.peak_memory(small) < 8
    assert cost.peak_memory(large) == pytest.approx(64, abs=8)


def test_an_interval_across_the_limit_decides_nothing() -> None:
    found = [cost.at_most(1.1, triple) for triple in ((1.0, 0.9, 1.1), (1.09, 0.9, 1.2), (1.3, 1.2, 1.4))]
    assert found == ["reproduced", "undecided", "not reproduced"]


# gradient variance


def test_groups_that_cut_a_correlated_trajectory_understate_the_variance() -> None:
    """Scalar gradients along AR(1) trajectories: whole ones are right, single samples short by (1+rho)/(1-rho)."""
    rho, length, num_groups, num_batches = 0.8, 60, 8, 100
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((num_batches, num_groups, length)) * math.sqrt(1 - rho**2)
    x = np.empty_like(noise)
    x[..., 0] = rng.standard_normal((num_batches, num_groups))
    for t in range(1, length):
        x[..., t] = rho * x[..., t - 1] + noise[..., t]
    rows = []
    for r, batch in enumerate(x):
        for size in (1, length):
            means = torch.from_numpy(batch.reshape(-1, size).mean(1))[:, None]
            trace = gradient_variance.gradient_variance("at", means, size)["gradvar/at"]
            rows.append(("AR(1)", "sigmoid", r, size, trace / batch.size, 0.0))
    frame = pd.DataFrame(rows, columns=["case", "gate", "batch", "group_size", "estimate", "kl"])
    table = gradient_variance.attach_truth(frame, {("AR(1)", "sigmoid"): x.mean((1, 2))[:, None]})
    right = gradient_variance.agreement(table, "AR(1)", "sigmoid", length)
    assert right[1] < 1 < right[2] and right[0] == pytest.approx(1, abs=0.25)
    assert gradient_variance.agreement(table, "AR(1)", "sigmoid", 1)[0] == pytest.approx((1 - rho) / (1 + rho), rel=0.35)


# sharpness


def test_the_estimated_squared_error_is_about_the_true_one() -> None:
    """weighted = plain/2 with plain ~ N(1, 1): bias 1/2, variance 1/4, squared error 1/4 + 1/(4 n)."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((400, 500)) + 1
    found = np.mean([sharpness.estimated_error(x / 2, x) for x in plain])
    assert found == pytest.approx(1 / 4 + 1 / 2000, rel=0.02)


# intervals, page and ledger


def test_intervals() -> None:
    assert common.share(0, 100)[:2] == (0.0, 0.0)
    assert common.share(0, 100)[2] == pytest.approx(0.0370, abs=1e-4)  # Wilson 1927
    assert common.share(50, 100)[1:] == pytest.approx((0.4038, 0.5962), abs=1e-4)
    middle, low, high = common.interval(np.random.default_rng(0).standard_normal(400))
    assert low < middle < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_numbers_on_the_page() -> None:
    assert [page.number(x) for x in (0.0, 0.12345, 1234.0, 1e-6, -2.5, math.inf, math.nan)] == [
        "0", "0.123", "1,234", "1.00e-06", "−2.5", "∞", "–",
    ]  # fmt: skip


def test_page_and_verdicts_are_those_of_the_tables() -> None:
    tables = {name: load_tables(name, RESULTS) for name in NAMES}
    rows = [row for name in NAMES for row in experiment(name).verdicts(tables[name])]
    verdicts = pd.DataFrame(rows, columns=common.Verdict._fields)
    pd.testing.assert_frame_equal(pd.read_parquet(RESULTS / "verdicts.parquet"), verdicts, check_dtype=False)
    text = page.render({name: experiment(name).numbers(tables[name]) for name in NAMES}, verdicts)
    assert (ROOT / "docs" / "theory.md").read_text() == text, "renew it with `python -m experiments.theory page`"


def test_figures_on_the_page_exist() -> None:
    text = (ROOT / "docs" / "theory.md").read_text()
    for name in NAMES:
        assert (f"figures/theory_{name}.svg" in text) == (ROOT / "docs" / "figures" / f"theory_{name}.svg").exists()


def test_the_whole_set_runs_in_a_small_size(tmp_path: Path) -> None:
    main(["--smoke", "--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")])
    verdicts = pd.read_parquet(tmp_path / "results" / "verdicts.parquet")
    assert set(verdicts.verdict) <= {"reproduced", "not reproduced", "undecided"}
    assert {"C1", "C2", "C3", "C4", "C5", "drift (ours)"} <= set(verdicts.claim)
    assert (verdicts.rule.str.len() > 20).all()
    assert len(list((tmp_path / "docs" / "figures").glob("*.png"))) == len(NAMES)


def test_a_missing_table_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"python -m experiments\.theory drift"):
        load_tables("drift", tmp_path)
