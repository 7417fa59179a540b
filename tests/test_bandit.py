"""Quadrature against closed forms, samples against quadrature, and importance sampling's variance that never settles."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from rgpo.bandit.__main__ import load
from rgpo.bandit.laws import Gaussian, Law, Pareto
from rgpo.bandit.measure import Moments, draw, gradients, growing_sizes, measure, sample, truth
from rgpo.bandit.quadrature import integrate, integrate_to_infinity
from rgpo.cli.config_dir import group_options
from rgpo.core import gates
from rgpo.core.adaptive_gate import AdaptiveSharpness
from rgpo.core.gate import weight
from rgpo.core.rollout import Array, disjoint_groups
from rgpo.errors import ConfigError
from rgpo.learning.diagnostics import gradient_variance


def reads_ratio_alone(name: str) -> bool:
    """False for a gate that reads old probabilities, or other samples of its batch."""
    gate = load("gate", name, {})
    return not gate.needs_logp_old and not gate.needs_batch


UNBOUNDED = {
    "identity",
    "clip",
    "dapo",
    "gspo",
    "spo",
    "budget",
    "open",
    "ano",
    "klip",
    "pspo",
}  # sup w is infinite on one side, or w is 0 or changes sign
BOUNDED = [name for name in group_options("gate") if name not in UNBOUNDED and reads_ratio_alone(name)]
LAWS: list[Law] = [Pareto(tail_index=1.5), Gaussian(mean=0.5, std=1.2)]
both_laws = pytest.mark.parametrize("law", LAWS, ids=["pareto", "gaussian"])


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


def second_moment(law: Law) -> float:
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
def test_second_moments_that_diverge_are_infinite(law: Law) -> None:
    assert second_moment(law) == math.inf
    row = truth(gates.Identity(), law)
    assert row.weight_mean == pytest.approx(1.0, abs=1e-6)
    assert row.weight_var == row.gradient_var == math.inf
    assert truth(gates.Sigmoid(sharpness=10.0), law).gradient_var < 2 * 2.6**2


def test_the_clips_truth_has_its_jumps() -> None:
    """a = 1.5: E[r; r < 1.2] = 1 - .57735/sqrt 1.2 and E[r; r > .8] = .57735/sqrt .8, with A = +1 in 3/4 of the draws."""
    low, high = 0.57735026919 / math.sqrt(1.2), 0.57735026919 / math.sqrt(0.8)
    row = truth(gates.Clip(eps_low=0.2, eps_high=0.2, cap=None), Pareto(tail_index=1.5))
    assert row.weight_mean == pytest.approx(0.75 * (1 - low) + 0.25 * high, rel=1e-6)
    assert row.weight_var == math.inf  # PPO's half A < 0 is unbounded
    capped = truth(gates.Clip(eps_low=0.2, eps_high=0.2, cap=3.0), Pareto(tail_index=1.5))
    assert capped.weight_mean == pytest.approx(0.75 * (1 - low) + 0.25 * (high - 0.57735026919 / math.sqrt(3)), rel=1e-6)
    # E[r^2; r in (a, b)] = 3 x_m^1.5 (sqrt b - sqrt a)
    c = 3 * (1 / 3) ** 1.5
    positive, negative = c * (1.2**0.5 - (1 / 3) ** 0.5), c * (3**0.5 - 0.8**0.5)
    mean = capped.weight_mean
    assert capped.weight_var == pytest.approx(0.75 * positive + 0.25 * negative - mean**2, rel=1e-6)
    signed = 0.75 * (1 - low) - 0.25 * (high - 0.57735026919 / math.sqrt(3))
    expected = 2 * (0.75 * positive + 0.25 * negative) - signed**2
    assert capped.gradient_var == pytest.approx(expected, rel=1e-6)


@both_laws
def test_a_constant_weight_has_variance_zero_and_never_less(law: Law) -> None:
    row = truth(gates.Log(), law)
    assert row.weight_mean == pytest.approx(1.0, abs=1e-9)
    assert 0 <= row.weight_var < 1e-8
    assert row.gradient_var == pytest.approx(2 - 0.5**2)


def test_gaussian_gate_under_gaussian_ratios() -> None:
    """std = 1: d ~ N(-m^2/2, m^2), so E exp(-d^2 k^2/2) is a Gaussian integral."""
    m, k = 0.8, 3.0
    row = truth(gates.GaussianLog(sharpness=k), Gaussian(mean=m, std=1.0))
    variance = 1 + (k * m) ** 2
    closed = k / math.sqrt(2 * math.pi * variance) * math.exp(-((k * m**2 / 2) ** 2) / (2 * variance))
    assert row.weight_mean == pytest.approx(closed, rel=1e-6)


@both_laws
@pytest.mark.parametrize("name", BOUNDED)
def test_samples_agree_with_quadrature(name: str, law: Law) -> None:
    n, gate = 100_000, load("gate", name, {})
    found, exact = sample(gate, law, n, np.random.default_rng(0)), truth(gate, law)
    assert found.weight_mean == pytest.approx(exact.weight_mean, abs=5 * math.sqrt(exact.weight_var / n) + 1e-9)
    assert found.weight_var == pytest.approx(exact.weight_var, rel=0.1, abs=1e-9)
    assert found.gradient_mean == pytest.approx(exact.gradient_mean, abs=5 * math.sqrt(exact.gradient_var / n))
    assert found.gradient_var == pytest.approx(exact.gradient_var, rel=0.1)


@both_laws
@pytest.mark.parametrize("name", BOUNDED)
def test_variance_estimated_from_disjoint_groups_agrees_with_quadrature(name: str, law: Law) -> None:
    """Means over M groups have a relative error of sqrt(2/M) in their variance."""
    n, gate = 100_000, load("gate", name, {})
    groups = disjoint_groups(1, n)
    _, gradient = gradients(gate, draw(law, n, np.random.default_rng(0)))
    means = gradient[torch.from_numpy(groups)].mean(1, keepdim=True)
    found = gradient_variance("before", means, groups.shape[1])["gradvar/before"]
    assert found == pytest.approx(truth(gate, law).gradient_var, rel=5 * math.sqrt(2 / len(groups)))


def test_importance_samplings_variance_grows_with_n_and_the_sigmoids_does_not() -> None:
    """Median over seeds at n = 1e2 .. 1e6, a = 1.5: slope 2/a - 1 = 1/3 in log-log against none."""
    sizes = [100, 1_000, 10_000, 100_000, 1_000_000]
    law, medians = Pareto(tail_index=1.5), {}
    draws = [[torch.from_numpy(law.draw(n, np.random.default_rng([s, n]))) for n in sizes] for s in range(9)]
    sigmoid = gates.Sigmoid(sharpness=10.0)
    for gate in (gates.Identity(), sigmoid):
        table = [[weight(gate, d, d).var().item() for d in row] for row in draws]
        medians[type(gate)] = np.median(table, 0)
    slope = {cls: np.polyfit(np.log(sizes), np.log(found), 1)[0] for cls, found in medians.items()}
    assert slope[gates.Identity] == pytest.approx(2 / 1.5 - 1, abs=0.15)
    assert medians[gates.Identity][-1] > 8 * medians[gates.Identity][0]
    assert slope[gates.Sigmoid] == pytest.approx(0, abs=0.03)
    known = law.expectation(lambda d: weight(sigmoid, torch.from_numpy(d), torch.ones(len(d))).numpy() ** 2)
    mean = law.expectation(lambda d: weight(sigmoid, torch.from_numpy(d), torch.ones(len(d))).numpy())
    assert medians[gates.Sigmoid][-1] == pytest.approx(known - mean**2, rel=0.01)


def test_gradient_mean_has_its_closed_form() -> None:
    """w = 1 and w = r both give E[w A s] = E A E s = 1/2, since E r = 1."""
    for law in LAWS:
        for gate in (gates.Log(), gates.Identity()):
            assert truth(gate, law).gradient_mean == pytest.approx(0.5, abs=1e-6)


def test_exact_moments_follow_a_gate_that_changes() -> None:
    """The KL of the law is far above the target, so one observation multiplies the sharpness by exp(rate)."""
    law = Pareto(tail_index=1.5)
    gate = load("gate", "adaptive_sign_aware", {"kl_target": 0.01})
    assert isinstance(gate, AdaptiveSharpness)
    before = gate.sharpness, truth(gate, law)
    gate.observe(law.kl())
    after = gate.sharpness, truth(gate, law)
    assert after[0] == pytest.approx(before[0] * math.exp(0.2))
    for sharpness, found in (before, after):
        plain = truth(load("gate", "sign_aware_sigmoid", {"sharpness": sharpness}), law)
        assert found == pytest.approx(plain, rel=1e-5)
    assert abs(after[1].weight_mean / before[1].weight_mean - 1) > 0.01


# the table


def test_sizes_grow_as_planned() -> None:
    assert growing_sizes(100, 10**0.5, 5) == [100, 316, 1000, 3162, 10000]
    assert growing_sizes(32, 1.0, 3) == [32, 32, 32]
    assert growing_sizes(100, 10**0.25, 17)[-1] == 1_000_000


def test_a_row_per_size_with_every_moment_beside_its_exact_value() -> None:
    law, gate = Pareto(tail_index=1.5), gates.Sigmoid(sharpness=10.0)
    table, exact = measure(gate, law, [100, 316], seed=3), truth(gate, law)
    assert list(table) == ["num_samples", *(f"{name}{end}" for name in Moments._fields for end in ("", "_true"))]
    assert table.num_samples.tolist() == [100, 316]
    for name in Moments._fields:
        assert (table[f"{name}_true"] == getattr(exact, name)).all()
        assert table[name].nunique() == 2


def test_rows_depend_on_the_seed_and_on_the_sizes_before_them_only() -> None:
    law, gate = Gaussian(mean=0.5, std=1.2), gates.Identity()
    table = measure(gate, law, [100, 200, 300], seed=1)
    pd.testing.assert_frame_equal(measure(gate, law, [100, 200], seed=1), table[:2])
    assert measure(gate, law, [100], seed=2).weight_mean[0] != table.weight_mean[0]


def test_measurements_are_those_of_version_0_1() -> None:
    """`rgpo-run task=bandit gate=sigmoid seed=1` of version 0.1 wrote these numbers, as float32."""
    table = measure(gates.Sigmoid(sharpness=10.0), Pareto(tail_index=1.5), growing_sizes(100, 10**0.25, 5), seed=1)
    names = [
        "num_samples",
        "weight_mean",
        "weight_var",
        "gradient_var",
        "weight_mean_true",
        "weight_var_true",
        "gradient_var_true",
    ]
    expected = [
        [100, 0.39839712, 0.5332309, 2.2192345, 0.30847162, 0.388379, 0.9432788],
        [178, 0.32780057, 0.4285867, 0.9515802, 0.30847162, 0.388379, 0.9432788],
        [316, 0.25564092, 0.26935378, 0.6941215, 0.30847162, 0.388379, 0.9432788],
        [562, 0.276454, 0.33038726, 0.6093634, 0.30847162, 0.388379, 0.9432788],
        [1000, 0.29852825, 0.37853602, 0.95032334, 0.30847162, 0.388379, 0.9432788],
    ]
    np.testing.assert_allclose(table[names], expected, rtol=1e-6)


def test_refusals_name_key_value_and_remedy() -> None:
    for make, match in (
        (lambda: Pareto(tail_index=1.0), r"law\.tail_index=1\.0: must be a finite number above 1"),
        (lambda: Gaussian(mean=0.0, std=0.0), r"law\.std=0\.0: must be a positive"),
        (lambda: Gaussian(mean=math.inf, std=1.0), r"law\.mean=inf: must be a finite number"),
        (lambda: growing_sizes(10, 2.0, 3), r"num_samples=10: must be at least 32"),
        (lambda: growing_sizes(100, 0.5, 3), r"growth=0\.5: must be a finite number of at least 1"),
        (lambda: growing_sizes(100, 2.0, 0), r"num_sizes=0: must be at least 1"),
        (lambda: growing_sizes(100, 1e300, 3), r"num_sizes=3: would draw over 1,000,000,000 samples"),
    ):
        with pytest.raises(ConfigError, match=match):
            make()
