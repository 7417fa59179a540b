"""Gates of the field against their published losses, written out: values where they are published, and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gate_options import load_gate
from torch import Tensor

from rgpo import gates
from rgpo.core.surrogate import Detached, GateObjective, Geometric, check_combination, surrogate
from rgpo.errors import ConfigError
from rgpo.gates import GateBatch, weight

N = 400
ALPHA = 1e-9  # float64


def sample(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """d, A and logp_old of N samples: ratios from 0.2 to 5, probabilities from 0.01 to 1."""
    rng = np.random.default_rng(seed)
    d, a, logp = 0.5 * rng.standard_normal(N), rng.standard_normal(N), np.log(rng.uniform(0.01, 0.99, N))
    return torch.from_numpy(d), torch.from_numpy(a), torch.from_numpy(logp)


def tv(d: Tensor, a: Tensor, logp_old: Tensor) -> Tensor:
    """DPPO-Binary-TV."""
    p_old, p = logp_old.exp(), (logp_old + d).exp()
    return d.exp().clamp(max=20) * torch.where(a > 0, p - p_old <= 0.2, p - p_old >= -0.2)


def kl(d: Tensor, a: Tensor, logp_old: Tensor) -> Tensor:
    """DPPO-Binary-KL; where p > 1 the sample is no probability and the mask is closed for A > 0."""
    p_old, p = logp_old.exp(), (logp_old + d).exp().clamp(max=1 - 1e-6)
    binary = p_old * (p_old / p_old.mul(d.exp())).log() + (1 - p_old) * ((1 - p_old) / (1 - p)).log()
    return d.exp().clamp(max=20) * torch.where(a > 0, (binary <= 0.05) | (d <= 0), (binary <= 0.05) | (d >= 0))


def klip(d: Tensor, a: Tensor, logp_old: Tensor) -> Tensor:
    r = d.exp()
    distance = torch.where(a > 0, r - 1.2, 0.8 - r)
    return r * (1 - torch.sigmoid(distance / 0.05))


def ano(d: Tensor, a: Tensor, logp_old: Tensor) -> Tensor:
    def slope(x: Tensor) -> Tensor:
        e = torch.exp(10 * (x - 1.2))
        return 0.02 * (1 - e) / ((1 + e) * (e + 0.02))

    r = d.exp()
    return r * torch.where(a > 0, slope(r), slope(2 - r)) / slope(torch.ones(()).double())


def vespo(d: Tensor, a: Tensor, logp_old: Tensor) -> Tensor:
    r = d.exp()
    return torch.where(a > 0, r**2 * torch.exp(3 - 3 * r), r**3 * torch.exp(2 - 2 * r))


PUBLISHED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dppo_tv": tv,
    "dppo_kl": kl,
    "ipo": lambda d, a, logp: d.exp() * (((logp + d).exp() - logp.exp()).abs() <= 0.1),
    "klip": klip,
    "ano": ano,
    "vespo": vespo,
    "cispo_floor": lambda d, a, logp: d.exp().clamp(0.8, 1.2),
    "topr": lambda d, a, logp: torch.where(a > 0, torch.ones_like(d), d.exp().clamp(0, 1)),
    "aspo": lambda d, a, logp: torch.where(a > 0, (-d).exp().clamp(max=3), d.exp() * ((d.exp() > 0.8) & (d.exp() < 3))),
    "pspo": lambda d, a, logp: 0.9 * d.exp() * torch.where(a > 0, 0.9 * d.exp() + 0.1 < 1.2, 0.9 * d.exp() + 0.1 > 0.8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_the_published_ones(name: str) -> None:
    d, a, logp_old = sample()
    found = weight(load_gate(name), d, a, logp_old)
    torch.testing.assert_close(found, PUBLISHED[name](d, a, logp_old), rtol=1e-7, atol=ALPHA)
    assert found.unique().numel() > 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_loss_has_the_gradient_of_the_published_one(name: str) -> None:
    """-sg[w] A log pi, by the surrogate and through a combination with a second gate."""
    d, a, logp_old = sample(1)
    d.requires_grad_()
    objective = GateObjective(gate=load_gate(name), ref_gate=gates.Open(), combine=Detached())
    loss, _ = objective(d, d, a, d * 0, kl_coef=0.0, logp_old=logp_old)
    (gradient,) = torch.autograd.grad(loss.sum(), d)
    torch.testing.assert_close(gradient, -PUBLISHED[name](d.detach(), a, logp_old) * a, rtol=1e-7, atol=ALPHA)


def test_values_of_losses_that_are_published_as_values() -> None:
    d, a, _ = sample(2)
    smooth = 0.9 * d.exp() + 0.1
    torch.testing.assert_close(
        -load_gate("pspo")(d, a) * a, -torch.minimum(smooth * a, smooth.clamp(0.8, 1.2) * a), rtol=1e-12, atol=1e-12
    )
    for eps in ({"eps_low": 0.2, "eps_high": 0.2}, {"eps_low": 0.95, "eps_high": 0.5}):  # the second: no lower bound
        gate = replace(load_gate("pspo"), **eps)
        band = smooth.clamp(1 - eps["eps_low"], 1 + eps["eps_high"])
        torch.testing.assert_close(gate(d, a) * a, torch.minimum(smooth * a, band * a), rtol=1e-12, atol=1e-12)


def test_klip_becomes_the_clip_and_ano_keeps_its_digits_in_float32() -> None:
    d, a, _ = sample(3)
    away = ((d.exp() - 1.2).abs() > 0.01) & ((d.exp() - 0.8).abs() > 0.01)
    sharp = weight(replace(load_gate("klip"), softness=1e-4), d, a)
    torch.testing.assert_close(sharp[away], weight(load_gate("clip"), d, a)[away], rtol=1e-9, atol=1e-9)
    far = torch.linspace(-3, 3, 601)
    for sign in (1.0, -1.0):
        single = weight(load_gate("ano"), far, torch.full_like(far, sign))
        double = weight(load_gate("ano"), far.double(), torch.full_like(far.double(), sign))
        torch.testing.assert_close(single.double(), double, rtol=2e-4, atol=1e-5)


def test_by_sign_is_its_halves_and_refuses_what_is_no_half() -> None:
    d, a, logp = sample(4)
    both = gates.BySign(positive=load_gate("dppo_tv"), negative=load_gate("log"))
    assert both.needs_logp_old and not both.needs_batch
    expected = torch.where(a >= 0, tv(d, a, logp), torch.ones_like(d))
    torch.testing.assert_close(weight(both, d, a, logp), expected, rtol=1e-9, atol=1e-9)
    clip = gates.BySign(
        positive=gates.Cdf(distribution="uniform", sharpness=1 / 1.2, center=0.6, scale="unit"), negative=load_gate("clip")
    )
    torch.testing.assert_close(weight(clip, d, a), weight(load_gate("clip"), d, a))
    for bad in (load_gate("m2po"), load_gate("adaptive_sign_aware"), 3.0):
        with pytest.raises(ConfigError, match=r"^gate\.positive=.*: must be a gate without state or bounds of a batch\.$"):
            gates.BySign(positive=bad, negative=load_gate("log"))


def test_a_gate_that_needs_the_old_probability_says_so_without_it() -> None:
    d, a, logp = sample(5)
    for gate in (load_gate("ipo"), gates.BySign(positive=load_gate("dppo_kl"), negative=load_gate("log"))):
        with pytest.raises(ConfigError, match=r"^gate=\w+: reads each sample's old probability, which is not known here; .*\.$"):
            gate(d, a)
    old = replace(load_gate("dppo_tv"), scale="unit")  # w(1) = 1 at any old probability
    torch.testing.assert_close(weight(old, d, a, logp), tv(d, a, logp))


def test_densities_above_one_are_no_trouble() -> None:
    """Continuous actions: p_old = e^3."""
    d, a, _ = sample(6)
    logp = torch.full_like(d, 3.0)
    torch.testing.assert_close(weight(load_gate("dppo_tv"), d, a, logp), tv(d, a, logp))
    assert weight(load_gate("dppo_kl"), d, a, logp).isfinite().all()


def test_the_reference_gate_reads_the_references_probability() -> None:
    d, a, logp_old = sample(7)
    d_ref, ref = d + 0.3, load_gate("ipo")
    loss = surrogate(d, d_ref, a, d * 0, gate=gates.Log(), ref_gate=ref, combine=Detached(), kl_coef=0.0, logp_old=logp_old).loss
    torch.testing.assert_close(loss, -d * ref(d_ref, a, logp_old - 0.3) * a)
    for combine, gate, ref_gate in (
        (Geometric(anchor=0.5), load_gate("ipo"), gates.Open()),
        (Geometric(anchor=0.5), load_gate("m2po"), gates.Open()),
        (Detached(), gates.Log(), load_gate("bapo")),
    ):
        with pytest.raises(ConfigError, match=r"^gate(_combination|@ref_gate)=.*\.$"):
            check_combination(combine, gate, ref_gate)


# bounds of a batch


def prepared(name: str, d: Tensor, a: Tensor, logp: Tensor, mask: Tensor | None = None, **change: Any) -> Tensor:
    """w under the bounds of a batch whose masked samples do not count."""
    gate = replace(load_gate(name), **change)
    return weight(gate.prepare(GateBatch(d, a, logp, mask)), d, a, logp)


def test_m2po_masks_the_farthest_samples_until_the_second_moment_is_small() -> None:
    """Algorithm 1, by removing one sample after another."""
    d, a, logp = sample(8)
    progress = ((d > 0) == (a >= 0)).numpy()
    square = np.where(progress, d.numpy() ** 2, 0.0)
    kept = np.ones(N, bool)
    while square[kept].mean() > 0.04:
        kept[np.argmax(np.where(kept, square, -1))] = False
    assert 0 < (~kept).sum() < N / 2
    torch.testing.assert_close(prepared("m2po", d, a, logp), d.exp() * torch.from_numpy(kept))
    assert (prepared("m2po", d / 10, a, logp) > 0).all()  # nothing to mask


def test_bapo_widens_the_clip_until_positive_samples_have_their_share() -> None:
    d, a, logp = sample(9)
    a = a - 1.0  # mostly negative
    r, low, high = d.exp(), 0.6, 1.2

    def share(low: float, high: float) -> float:
        pos = (r.clamp(max=high) * a)[a >= 0].sum()
        neg = (r.clamp(min=low) * -a)[a < 0].sum()
        return float(pos / (pos + neg))

    target = share(0.6, 1.5) - 1e-6  # reached after six steps of the upper bound
    for i in range(37):
        high = 1.2 + 0.05 * i
        if share(low, high) >= target:
            break
    assert high == pytest.approx(1.5)
    expected = r * torch.where(a >= 0, r < high, r > low)
    torch.testing.assert_close(prepared("bapo", d, a, logp, share=target), expected)
    never = prepared("bapo", d, a, logp, share=0.99)  # the last clip
    torch.testing.assert_close(never, r * torch.where(a >= 0, r < 3.0, r > 0.9))


def covariance(d: Tensor, a: Tensor, logp: Tensor, mask: Tensor) -> Tensor:
    new = d + logp
    return (a - a[mask].mean()) * (new - new[mask].mean())


def test_kl_cov_penalizes_the_samples_of_highest_covariance() -> None:
    d, a, logp = sample(10)
    mask = torch.arange(N) % 7 > 0
    cov = covariance(d, a, logp, mask).where(mask, torch.tensor(-torch.inf).double())
    chosen = torch.zeros(N, dtype=torch.bool)
    chosen[cov.topk(int(0.05 * int(mask.sum()))).indices] = True
    x = d.clone().requires_grad_()
    losses = -a * x.exp() + chosen * x.abs()
    (expected,) = torch.autograd.grad(losses[mask].sum(), x)
    gate = replace(load_gate("kl_cov"), fraction=0.05)
    found = gate.prepare(GateBatch(d, a, logp, mask.double()))(x, a, logp)
    torch.testing.assert_close((-found * a)[mask], losses[mask])
    (gradient,) = torch.autograd.grad((-found * a)[mask].sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_clip_cov_drops_candidates_and_counts_them() -> None:
    d, a, logp = sample(11)
    mask = torch.ones(N, dtype=torch.bool)
    cov, plain = covariance(d, a, logp, mask), weight(load_gate("clip"), d, a)
    candidates = (cov > 0.5) & (cov < 2.0) & (plain > 0)
    found = prepared("clip_cov", d, a, logp, cov_low=0.5, cov_high=2.0, fraction=0.05)
    dropped = (found == 0) & (plain > 0)
    assert dropped.sum() == int(0.05 * N) and candidates[dropped].all()
    torch.testing.assert_close(found[~dropped], plain[~dropped])
    every = prepared("clip_cov", d, a, logp, cov_low=0.5, cov_high=2.0, fraction=0.9)  # no draw: all candidates
    torch.testing.assert_close(every, plain * ~candidates)


def test_r2vpo_has_the_gradient_of_the_variance() -> None:
    d, a, _ = sample(12)
    x = d.clone().requires_grad_()
    loss = (-a * x.exp()).mean() + 0.1 * x.exp().var(unbiased=False)
    (expected,) = torch.autograd.grad(loss, x)
    found = load_gate("r2vpo")(x, a)
    torch.testing.assert_close((-found * a).mean(), loss)
    (gradient,) = torch.autograd.grad((-found * a).mean(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ["m2po", "bapo", "clip_cov", "kl_cov", "r2vpo"])
def test_samples_of_weight_zero_do_not_set_bounds(name: str) -> None:
    d, a, logp = sample(13)
    gate, half = load_gate(name), torch.arange(N) < N // 2
    far = d.where(half, d + 5)
    masked = gate.prepare(GateBatch(far, a, logp, half.double()))
    alone = gate.prepare(GateBatch(d[half], a[half], logp[half]))
    torch.testing.assert_close(masked(d[half], a[half], logp[half]), alone(d[half], a[half], logp[half]))


# distributions of the threshold
