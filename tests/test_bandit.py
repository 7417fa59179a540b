"""Quadrature against closed forms, samples against quadrature, and importance sampling's variance that never settles."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rgpo.bandit.measure import Bandit, Gaussian, Measure, Pareto, truth
from rgpo.bandit.quadrature import integrate, integrate_to_infinity
from rgpo.core import gates
from rgpo.core.adaptive_gate import AdaptiveSharpness
from rgpo.core.advantages import GAE, Exponential
from rgpo.core.gates import Curve, weight
from rgpo.core.kl_penalty import NoPenalty
from rgpo.core.rollout import Array
from rgpo.core.surrogate import Detached
from rgpo.errors import ConfigError
from rgpo.learning.algorithm import Algorithm
from rgpo.learning.sgd import SGD
from rgpo.paths import conf_dir

GATES = {file.stem: file for file in sorted((conf_dir() / "gate").glob("*.yaml"))}
BOUNDED = sorted(set(GATES) - {"identity", "clip", "dapo", "gspo", "spo", "budget", "open"})  # sup w is finite on both sides


def gate_of(name: str) -> Any:
    return instantiate(OmegaConf.load(GATES[name]))


@pytest.mark.parametrize(
    ("function", "low", "high", "expected"),
    [
        (lambda x: x**9, 0.0, 2.0, 2**10 / 10),
        (np.exp, -1.0, 3.0, math.e**3 - math.exp(-1)),
        (lambda x: np.sin(20 * x), 0.0, math.pi / 2, 0.0),
        (lambda x: (x < 1 / 3) * 1.0, 0.0, 1.0, 1 / 3),
        (lambda x: np.abs(x - 0.7), 0.0, 1.0, (0.49 + 0.09) / 2),
        (lambda x: 1 / np.cosh(200 * (x - 0.123)) ** 2, 0.0, 1.0, 0.01),
        (lambda x: x * 0, 0.0, 1.0, 0.0),
    ],
    ids=["polynomial", "exp", "sine", "jump", "kink", "peak", "zero"],
)
def test_integrate(function: Callable[[Array], Array], low: float, high: float, expected: float) -> None:
    assert integrate(function, low, high) == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_integrate_to_infinity() -> None:
    assert integrate_to_infinity(lambda x: np.exp(-x), 0.0, 20.0) == pytest.approx(1.0, rel=1e-12)
    assert integrate_to_infinity(lambda x: np.exp(-0.01 * x), 0.0, 20.0) == pytest.approx(100.0, rel=1e-9)
    assert integrate_to_infinity(lambda x: x * 0 + 1, 0.0, 20.0) == math.inf
    assert integrate_to_infinity(lambda x: -np.exp(x), 0.0, 20.0) == -math.inf


def test_laws_of_the_ratio() -> None:
    for law in (Gaussian(mean=0.5, std=1.2), Gaussian(mean=-0.3, std=0.8), Pareto(tail_index=1.5), Pareto(tail_index=3)):
        assert law.expectation(lambda d: d * 0 + 1) == pytest.approx(1.0, abs=1e-9)
        assert law.expectation(np.exp) == pytest.approx(1.0, abs=1e-8)  # E r = 1
        assert law.expectation(lambda d: -d) == pytest.approx(law.kl(), abs=1e-8)
        d = law.draw(200_000, np.random.default_rng(0))
        assert -d.mean() == pytest.approx(law.kl(), abs=5 * d.std() / 200_000**0.5)
    x = np.linspace(-2, 2, 9)
    old, new = (torch.distributions.Normal(m, s) for m, s in ((0.0, 1.0), (0.5, 1.2)))
    expected = (new.log_prob(torch.from_numpy(x)) - old.log_prob(torch.from_numpy(x))).numpy()
    np.testing.assert_allclose(Gaussian(mean=0.5, std=1.2).log_ratio(x), expected, atol=1e-6)
    assert Gaussian(mean=0.5, std=1.2).kl() == pytest.approx(torch.distributions.kl_divergence(old, new).item())


def second_moment(law: Gaussian | Pareto) -> float:
    return law.expectation(lambda d: np.exp(2 * d))


@pytest.mark.parametrize(("m", "variance"), [(0.5, 1.44), (0.0, 1.2), (1.0, 0.7), (0.3, 1.9)])
def test_second_moment_of_gaussian_ratios(m: float, variance: float) -> None:
    s = variance**0.5
    closed = math.exp(m**2 / (2 - variance)) / (s * math.sqrt(2 - variance))
    assert second_moment(Gaussian(mean=m, std=s)) == pytest.approx(closed, rel=1e-6)


@pytest.mark.parametrize("a", [2.1, 2.5, 3.0, 6.0])
def test_second_moment_of_pareto_ratios(a: float) -> None:
    assert second_moment(Pareto(tail_index=a)) == pytest.approx(a * ((a - 1) / a) ** 2 / (a - 2), rel=1e-6)


@pytest.mark.parametrize(
    "law", [Pareto(tail_index=1.2), Pareto(tail_index=2.0), Gaussian(mean=0.0, std=2**0.5), Gaussian(mean=0.5, std=1.6)]
)
def test_second_moments_that_diverge_are_infinite(law: Gaussian | Pareto) -> None:
    assert second_moment(law) == math.inf
    row = truth(gates.Identity(), law)
    assert row["bandit/weight_mean_true"] == pytest.approx(1.0, abs=1e-6)
    assert row["bandit/weight_var_true"] == row["bandit/gradient_var_true"] == math.inf
    assert truth(gates.Sigmoid(), law)["bandit/gradient_var_true"] < 2 * 2.6**2


def test_the_clips_truth_has_its_jumps() -> None:
    """a = 1.5: E[r; r < 1.2] = 1 - .57735/sqrt 1.2 and E[r; r > .8] = .57735/sqrt .8, with A = +1 in 3/4 of the draws."""
    low, high = 0.57735026919 / math.sqrt(1.2), 0.57735026919 / math.sqrt(0.8)
    row = truth(gates.Clip(), Pareto(tail_index=1.5))
    assert row["bandit/weight_mean_true"] == pytest.approx(0.75 * (1 - low) + 0.25 * high, rel=1e-6)
    assert row["bandit/weight_var_true"] == math.inf  # PPO's half A < 0 is unbounded
    capped = truth(gates.Clip(cap=3.0), Pareto(tail_index=1.5))
    assert capped["bandit/weight_mean_true"] == pytest.approx(
        0.75 * (1 - low) + 0.25 * (high - 0.57735026919 / math.sqrt(3)), rel=1e-6
    )
    # E[r^2; r in (a, b)] = 3 x_m^1.5 (sqrt b - sqrt a)
    c = 3 * (1 / 3) ** 1.5
    positive, negative = c * (1.2**0.5 - (1 / 3) ** 0.5), c * (3**0.5 - 0.8**0.5)
    mean = capped["bandit/weight_mean_true"]
    assert capped["bandit/weight_var_true"] == pytest.approx(0.75 * positive + 0.25 * negative - mean**2, rel=1e-6)
    signed = 0.75 * (1 - low) - 0.25 * (high - 0.57735026919 / math.sqrt(3))
    expected = 2 * (0.75 * positive + 0.25 * negative) - signed**2
    assert capped["bandit/gradient_var_true"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("law", [Pareto(tail_index=1.5), Gaussian(mean=0.5, std=1.2)], ids=["pareto", "gaussian"])
def test_a_constant_weight_has_variance_zero_and_never_less(law: Gaussian | Pareto) -> None:
    row = truth(gates.Log(), law)
    assert row["bandit/weight_mean_true"] == pytest.approx(1.0, abs=1e-9)
    assert 0 <= row["bandit/weight_var_true"] < 1e-8
    assert row["bandit/gradient_var_true"] == pytest.approx(2 - 0.5**2)


def test_gaussian_gate_under_gaussian_ratios() -> None:
    """std = 1: d ~ N(-m^2/2, m^2), so E exp(-d^2 k^2/2) is a Gaussian integral."""
    m, k = 0.8, 3.0
    row = truth(gates.GaussianLog(sharpness=k), Gaussian(mean=m, std=1.0))
    variance = 1 + (k * m) ** 2
    closed = k / math.sqrt(2 * math.pi * variance) * math.exp(-((k * m**2 / 2) ** 2) / (2 * variance))
    assert row["bandit/weight_mean_true"] == pytest.approx(closed, rel=1e-6)


def make_algorithm(gate: Any, **change: Any) -> Algorithm:
    parts = {"ref_gate": gates.Open(), "advantage": GAE(gamma=0.0, lam=0.0)} | change
    return Algorithm(gate=gate, dual=Detached(), penalty=NoPenalty(), update=SGD(), kl_spike_threshold=0.04, **parts)


def run(gate: Any, law: Gaussian | Pareto, sizes: int, iterations: int = 1, growth: float = 1.0, seed: int = 0) -> Any:
    """Metrics of each iteration of a whole bandit run."""
    task = Bandit(ratio=law, num_samples=sizes, growth=growth)
    algorithm = task.admit(make_algorithm(gate))
    assert isinstance(algorithm.update, Measure)
    task.setup(seed, 0.0)
    policy = task.make_policy(seed)
    algorithm.setup(policy, iterations, seed)
    return [algorithm.learn(policy, task.collect(policy), measure_variance=True) for _ in range(iterations)]


@pytest.mark.parametrize("law", [Pareto(tail_index=1.5), Gaussian(mean=0.5, std=1.2)], ids=["pareto", "gaussian"])
@pytest.mark.parametrize("name", BOUNDED)
def test_samples_agree_with_quadrature(name: str, law: Gaussian | Pareto) -> None:
    n = 100_000
    (row,) = run(gate_of(name), law, n)
    error = math.sqrt(max(row["bandit/weight_var_true"], 0.0) / n)
    assert row["bandit/num_samples"] == n
    assert row["bandit/weight_mean"] == pytest.approx(row["bandit/weight_mean_true"], abs=5 * error + 1e-9)
    assert row["bandit/weight_var"] == pytest.approx(row["bandit/weight_var_true"], rel=0.1, abs=1e-9)
    assert row["bandit/gradient_var"] == pytest.approx(row["bandit/gradient_var_true"], rel=0.1)
    assert row["gradvar/before"] == row["gradvar/after"]  # nothing is learnt
    # batch means over M groups have a relative error of sqrt(2/M)
    m = row["gradvar/num_groups"]
    assert row["gradvar/before"] == pytest.approx(row["bandit/gradient_var_true"], rel=5 * math.sqrt(2 / m))


def test_importance_samplings_variance_grows_with_n_and_the_sigmoids_does_not() -> None:
    """Median over seeds at n = 1e2 .. 1e6, a = 1.5: slope 2/a - 1 = 1/3 in log-log against none."""
    sizes = [100, 1_000, 10_000, 100_000, 1_000_000]
    law, medians = Pareto(tail_index=1.5), {}
    draws = [[torch.from_numpy(law.draw(n, np.random.default_rng([s, n]))) for n in sizes] for s in range(9)]
    for gate in (gates.Identity(), gates.Sigmoid()):
        table = [[weight(gate, d, d).var().item() for d in row] for row in draws]
        medians[type(gate)] = np.median(table, 0)
    slope = {cls: np.polyfit(np.log(sizes), np.log(found), 1)[0] for cls, found in medians.items()}
    assert slope[gates.Identity] == pytest.approx(2 / 1.5 - 1, abs=0.15)
    assert medians[gates.Identity][-1] > 8 * medians[gates.Identity][0]
    assert slope[gates.Sigmoid] == pytest.approx(0, abs=0.03)
    known = law.expectation(lambda d: weight(gates.Sigmoid(), torch.from_numpy(d), torch.ones(len(d))).numpy() ** 2)
    mean = law.expectation(lambda d: weight(gates.Sigmoid(), torch.from_numpy(d), torch.ones(len(d))).numpy())
    assert medians[gates.Sigmoid][-1] == pytest.approx(known - mean**2, rel=0.01)


def test_the_truth_follows_a_gate_that_changes() -> None:
    """KL of the law is far above the target: the sharpness moves after every iteration, and w(1) with it."""
    law = Pareto(tail_index=1.5)
    gate = AdaptiveSharpness(gate=gates.Sigmoid(), kl_target=0.01)
    first, second = run(gate, law, 20_000, iterations=2)
    assert second["gate/sharpness"] == pytest.approx(first["gate/sharpness"] * math.exp(0.2))
    for row in (first, second):
        now = truth(gates.Sigmoid(sharpness=row["gate/sharpness"]), law)
        assert row["bandit/weight_mean_true"] == pytest.approx(now["bandit/weight_mean_true"], rel=1e-5)


def test_iterations_grow_as_planned_and_resume() -> None:
    law = Pareto(tail_index=1.5)
    rows = run(gates.Sigmoid(), law, 100, iterations=5, growth=10**0.5)
    assert [row["bandit/num_samples"] for row in rows] == [100, 316, 1000, 3162, 10000]
    task = Bandit(ratio=law, num_samples=100, growth=10**0.5)
    assert [task.plan_iterations(n) for n in (1, 100, 101, 416, 417)] == [1, 1, 2, 2, 3]
    task.setup(3, 0.0)
    policy = task.make_policy(3)
    task.collect(policy)
    saved = task.state_dict()
    straight = task.collect(policy)
    other = Bandit(ratio=law, num_samples=100, growth=10**0.5)
    other.setup(99, 0.0)
    other.load_state_dict(saved)
    resumed = other.collect(policy)
    np.testing.assert_array_equal(resumed.action, straight.action)
    np.testing.assert_array_equal(resumed.reward, straight.reward)


def test_what_the_bandit_refuses() -> None:
    for make, match in (
        (lambda: Pareto(tail_index=1.0), r"task\.ratio\.tail_index=1\.0: must be above 1"),
        (lambda: Gaussian(std=0.0), r"task\.ratio\.std=0\.0: must be positive"),
        (lambda: Bandit(ratio=Pareto(), num_samples=10), r"task\.num_samples=10: needs at least 32"),
        (lambda: Bandit(ratio=Pareto(), growth=0.5), r"task\.growth=0\.5: must be at least 1"),
        (lambda: Bandit(ratio=Pareto()).admit(make_algorithm(gates.Log(), ref_gate=gates.Budget())), "gate@ref_gate"),
    ):
        with pytest.raises(ConfigError, match=match):
            make()


def test_the_bandit_refuses_advantages_that_its_truth_does_not_know() -> None:
    """The truth is for A = +-1; AWR's exp(A/beta) would stand beside a truth that is not its own."""
    with pytest.raises(ConfigError, match="advantage"):
        Bandit(ratio=Pareto()).admit(make_algorithm(gates.Log(), advantage=Exponential(gae=GAE())))


@pytest.mark.parametrize("name", ["sigmoid", "clip"])
def test_yaml_tasks_name_the_laws(name: str) -> None:
    gate: Curve = gate_of(name)
    for file, law in (("bandit", Pareto), ("bandit_gaussian", Gaussian)):
        node = OmegaConf.load(Path(conf_dir()) / "task" / f"{file}.yaml").task.ratio
        assert isinstance(instantiate(node), law)
        assert math.isfinite(truth(gate, instantiate(node))["bandit/weight_mean_true"])
