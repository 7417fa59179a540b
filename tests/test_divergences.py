"""KL estimators against the closed form, effective sample sizes, and Hill's estimator on known tails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rgpo.core.divergences import effective_sample_size, k1, k2, k3, tail_index

N = 200_000


def log_ratios(shift: float, scale: float) -> tuple[Tensor, float]:
    """x = log q/p on samples of p = N(0, 1), q = N(shift, scale^2); and KL(p || q) in closed form."""
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(shift, scale)
    z = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    closed = math.log(scale) + (1 + shift**2) / (2 * scale**2) - 0.5
    assert closed == pytest.approx(torch.distributions.kl_divergence(p, q).item(), abs=1e-6)
    return q.log_prob(z) - p.log_prob(z), closed


@pytest.mark.parametrize(("shift", "scale"), [(0.1, 1.0), (0.3, 1.1), (0.0, 1.2), (0.5, 0.9)])
def test_k1_and_k3_are_unbiased(shift: float, scale: float) -> None:
    x, closed = log_ratios(shift, scale)
    for estimate in (k1(x), k3(x)):
        assert estimate.mean().item() == pytest.approx(closed, abs=4 * estimate.std().item() / N**0.5)
    assert k3(x).var() < k1(x).var()
    assert k1(x).min() < 0 <= k3(x).min()


def test_k2_is_close_near_one_and_biased_further_out() -> None:
    x, closed = log_ratios(0.1, 1.0)
    assert k2(x).mean().item() == pytest.approx(closed, rel=0.02)
    x, closed = log_ratios(2.0, 1.0)  # x ~ N(-2, 4): E x^2/2 = 4, KL = 2
    assert closed == 2
    assert k2(x).mean().item() == pytest.approx(4.0, rel=0.02)


def test_slopes_of_the_estimators() -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    for estimator, slope in ((k1, lambda x: -torch.ones_like(x)), (k2, lambda x: x), (k3, lambda x: x.exp() - 1)):
        (found,) = torch.autograd.grad(estimator(x).sum(), x)
        torch.testing.assert_close(found, slope(x.detach()))


def test_k3_is_never_negative_nor_infinite_and_never_pushes_the_wrong_way() -> None:
    x = torch.linspace(-300, 300, 2401).requires_grad_()
    value = k3(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert value.isfinite().all()
    assert (value >= 0).all()
    assert slope.isfinite().all()
    assert (slope * x >= 0).all()  # KL falls towards x = 0 from both sides


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_effective_sample_size(dtype: torch.dtype) -> None:
    equal = torch.full((50,), 0.3, dtype=dtype)
    assert effective_sample_size(equal).item() == pytest.approx(1.0)
    one = torch.zeros(50, dtype=dtype)
    assert effective_sample_size(one) == 0
    one[7] = 5.0
    assert effective_sample_size(one).item() == pytest.approx(1 / 50)
    w = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)
    assert effective_sample_size(w).item() == pytest.approx(100 / 30 / 4)
    for scale in (1e-30, 1e30):
        assert effective_sample_size(w * scale).item() == pytest.approx(100 / 30 / 4)


def test_effective_sample_size_of_log_normal_ratios() -> None:
    """(E r)^2/E r^2 = e^(-s^2) for log r ~ N(., s^2)."""
    d = 0.5 * torch.randn(N, generator=torch.Generator().manual_seed(1))
    assert effective_sample_size(d.exp()).item() == pytest.approx(math.exp(-0.25), rel=0.01)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_hill_finds_the_index_of_a_pareto_tail(alpha: float) -> None:
    log_ratio = torch.from_numpy(np.random.default_rng(0).standard_exponential(100_000) / alpha)
    count = 5_000
    assert tail_index(log_ratio).item() == pytest.approx(alpha, rel=4 / count**0.5)
    assert tail_index(log_ratio - 7.0).item() == pytest.approx(tail_index(log_ratio).item())  # whatever the scale of r
    top = log_ratio.sort(descending=True).values[: count + 1]
    assert tail_index(log_ratio).item() == pytest.approx(count / (top[:-1] - top[-1]).sum().item())


def test_hill_of_few_or_equal_samples() -> None:
    assert tail_index(torch.zeros(100)) == math.inf
    d = torch.arange(20.0)
    assert tail_index(d).item() == pytest.approx(10 / sum(range(1, 11)))  # ten order statistics at least
    assert tail_index(d[:5]).item() == pytest.approx(4 / (1 + 2 + 3 + 4))
