"""The divergence in the loss: exact sums over a small vocabulary, on-policy and off-policy, and float32 far out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from update_parts import noise, objective

from rgpo.core import gates
from rgpo.core.divergences import k3, reweighted_kl
from rgpo.core.kl_penalty import Divergence
from rgpo.learning.loss import policy_loss
from rgpo.learning.samples import PolicyOutput, Samples

ESTIMATORS = ("k2", "k3", "unbiased")
SCALES = (0.3, 1.0, 3.0)


class Softmax:
    """Policy, old policy, reference over 50 tokens; on_policy: old is the policy itself."""

    def __init__(self, scale: float, on_policy: bool) -> None:
        self.theta = noise(50, seed=1, dtype=torch.float64).requires_grad_()
        self.logp = self.theta.log_softmax(-1)
        away = noise(2, 50, seed=2, dtype=torch.float64)
        self.ref = (self.theta.detach() + scale * away[0]).log_softmax(-1)
        self.old = self.logp.detach() if on_policy else (self.theta.detach() + scale * away[1]).log_softmax(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return torch.autograd.grad(x, self.theta, retain_graph=True)[0]

    def expected_loss(self, estimator: str, anchor: str, **change: Any) -> Tensor:
        """E_old of the loss that the learner computes with advantage 0 and coefficient 1."""
        zero = torch.zeros_like(self.old)
        samples = Samples(self.old, self.ref, zero, zero, zero, weight=self.old.exp(), **change)
        out = PolicyOutput(self.logp, None, None, None)
        divergence = Divergence(estimator=estimator, anchor=anchor)
        return policy_loss(out, samples, objective=objective(gates.Log(scale="none")), divergence=divergence, kl_coef=1.0)[0]

    def kl(self, p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum()


def assert_parallel(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("anchor", ["reference", "old"])
@pytest.mark.parametrize("scale", SCALES)
def test_unbiased_has_value_and_gradient_of_the_kl_to_the_anchor(scale: float, anchor: str, on_policy: bool) -> None:
    p = Softmax(scale, on_policy)
    found, wanted = p.expected_loss("unbiased", anchor), p.kl(p.logp, p.ref if anchor == "reference" else p.old)
    assert_parallel(found, wanted)
    assert_parallel(p.gradient(found), p.gradient(wanted))


@pytest.mark.parametrize("scale", SCALES)
def test_on_policy_k2_has_that_gradient_and_k3_that_of_the_other_direction(scale: float) -> None:
    p = Softmax(scale, on_policy=True)
    reverse, forward = p.gradient(p.kl(p.logp, p.ref)), p.gradient(p.kl(p.ref, p.logp))
    assert_parallel(p.gradient(p.expected_loss("k2", "reference")), reverse)
    assert_parallel(p.gradient(p.expected_loss("k3", "reference")), forward)
    assert_parallel(p.expected_loss("k3", "reference"), p.kl(p.logp, p.ref))  # the value is right all the same
    if scale == 3.0:
        assert torch.cosine_similarity(reverse, forward, dim=0) < 0.7


@pytest.mark.parametrize("scale", SCALES)
def test_k3_from_the_old_policy_is_the_exact_kl_of_control(scale: float) -> None:
    p = Softmax(scale, on_policy=False)
    found, exact = p.expected_loss("k3", "old"), p.kl(p.old, p.logp)
    assert_parallel(found, exact)
    assert_parallel(p.gradient(found), p.gradient(exact))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_off_policy_the_uncorrected_ones_have_neither_gradient(estimator: str) -> None:
    p = Softmax(1.0, on_policy=False)
    found = p.gradient(p.expected_loss(estimator, "reference"))
    for wanted in (p.gradient(p.kl(p.logp, p.ref)), p.gradient(p.kl(p.ref, p.logp))):
        assert (found - wanted).norm() > 0.1 * wanted.norm()


def test_a_samplers_correction_reweights_the_unbiased_one() -> None:
    """Samples of a third distribution q with correction old/q, here as weights q."""
    p = Softmax(1.0, on_policy=False)
    q = noise(50, seed=5, dtype=torch.float64).log_softmax(-1)
    zero = torch.zeros_like(q)
    samples = Samples(p.old, p.ref, zero, zero, zero, weight=q.exp(), correction=(p.old - q).exp())
    divergence = Divergence(estimator="unbiased", anchor="reference")
    out = PolicyOutput(p.logp, None, None, None)
    found, _ = policy_loss(out, samples, objective=objective(gates.Log(scale="none")), divergence=divergence, kl_coef=1.0)
    assert_parallel(p.gradient(found), p.gradient(p.kl(p.logp, p.ref)))


def test_the_slope_of_the_reweighted_estimate_is_that_of_r_k3_without_its_cancellation() -> None:
    d = torch.linspace(-4, 4, 17, dtype=torch.float64).requires_grad_()
    for gap in (-2.0, 0.0, 1.5):  # d_old - d_ref
        (found,) = torch.autograd.grad(reweighted_kl(d + gap, d).sum(), d)
        (plain,) = torch.autograd.grad(((d + gap).exp() * k3(-d)).sum(), d)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(reweighted_kl(d + gap, d), (d + gap).exp() * k3(-d))
    far = torch.tensor([-35.0], requires_grad=True)  # float32: the two terms of r k3 are e^35, their sum is 35
    assert torch.autograd.grad(reweighted_kl(far * 0, far).sum(), far)[0].item() == -35


@pytest.mark.parametrize("anchor", ["reference", "old"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_everything_is_finite_in_float32_and_pulls_towards_the_anchor(estimator: str, anchor: str) -> None:
    grid = torch.tensor([-300.0, -88.0, -40.0, -20.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 20.0, 40.0, 88.0, 300.0])
    d_old, d_ref = (x.flatten() for x in torch.meshgrid(grid, grid, indexing="ij"))
    d_old, d_ref = (x.clone().requires_grad_() for x in (d_old, d_ref))
    value = 1000 * Divergence(estimator=estimator, anchor=anchor)(d_old, d_ref, None)
    slopes = torch.autograd.grad(value.sum(), (d_old, d_ref), allow_unused=True)
    slope = sum(torch.zeros_like(d_old) if x is None else x for x in slopes)
    assert isinstance(slope, Tensor) and value.isfinite().all() and slope.isfinite().all()
    assert (value >= 0).all()
    assert (slope * (d_old if anchor == "old" else d_ref) >= 0).all()


def test_the_value_is_never_negative_and_exact_for_two_outcomes() -> None:
    """pi = (3/4, 1/4), old = (1/2, 1/2), q = (1/4, 3/4): KL(pi || q) = ln(3)/2."""
    pi, old, q = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.75, 0.25], [0.5, 0.5], [0.25, 0.75]))
    value = reweighted_kl(pi - old, pi - q)
    assert (value >= 0).all() and (old.exp() * value).sum().item() == pytest.approx(math.log(3) / 2)
