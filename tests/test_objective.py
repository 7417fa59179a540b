"""The objective against published losses written out, the joins of two gates, and the theory's bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from rgpo import gates
from rgpo.advantages import GAE, Exponential
from rgpo.batch import Rollout
from rgpo.errors import ConfigError
from rgpo.gates import Curve, weight
from rgpo.objective import (
    Detached,
    Dual,
    Geometric,
    Minimum,
    Product,
    check_dual,
    sequence_mean,
    surrogate,
    token_mean,
)
from rgpo.paths import conf_dir

N = 200


def samples(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logp_new (with gradient), logp_old, logp_ref and advantages (N,), float64; ratios from about e^-2 to e^2."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((4, N), generator=generator, dtype=torch.float64)
    logp_old = -1 + 0.5 * noise[0]
    return (logp_old + 0.7 * noise[1]).requires_grad_(), logp_old, logp_old + 0.5 * noise[2], noise[3]


def ours(gate: Any, kl_coef: float = 0.0, **change: Any) -> tuple[Tensor, Tensor]:
    """Loss per sample and its gradient by logp_new."""
    logp_new, logp_old, logp_ref, advantage = samples()
    settings = {"gate": gate, "ref_gate": gates.Open(), "dual": Detached(), "kl_coef": kl_coef} | change
    loss = surrogate(logp_new, logp_old, logp_ref, advantage, **settings).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), logp_new)[0]


def sigmoid_surrogate(r: Tensor, tau: Tensor | float) -> Tensor:
    return torch.sigmoid(tau * (r - 1)) * 4 / tau


# The published objectives, to be maximised, as their papers write them: f(r, log pi, A).
PUBLISHED: dict[str, tuple[Curve, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "ppo_clip": (gates.Clip(eps_low=0.2, eps_high=0.2), lambda r, logp, a: torch.min(r * a, r.clamp(0.8, 1.2) * a)),
    "dapo_clip_higher": (
        gates.Clip(eps_low=0.2, eps_high=0.28),
        lambda r, logp, a: torch.min(r * a, r.clamp(0.8, 1.28) * a),
    ),
    "dual_clip": (
        gates.Clip(cap=3.0),
        lambda r, logp, a: torch.where(
            a < 0,
            torch.max(torch.min(r * a, r.clamp(0.8, 1.2) * a), 3.0 * a),
            torch.min(r * a, r.clamp(0.8, 1.2) * a),
        ),
    ),
    "importance_sampling": (gates.Identity(), lambda r, logp, a: r * a),
    "rgpo": (gates.Sigmoid(sharpness=5.0), lambda r, logp, a: torch.sigmoid(5 * (r - 1)) * a),
    "sapo": (gates.Sapo(), lambda r, logp, a: sigmoid_surrogate(r, torch.where(a >= 0, 1.0, 1.05).double()) * a),
    "p3o": (gates.Sapo(sharpness=4.0, sharpness_neg=4.0), lambda r, logp, a: sigmoid_surrogate(r, 4.0) * a),
    "spo": (gates.Spo(eps_high=0.2), lambda r, logp, a: r * a - a.abs() / (2 * 0.2) * (r - 1) ** 2),
}
# ... and those that are only defined by their gradient, with a stop-gradient or without a ratio
PUBLISHED_GRADIENTS: dict[str, tuple[Curve, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "reinforce": (gates.Log(), lambda r, logp, a: logp * a),
    "cispo": (gates.Cispo(cap=1.5), lambda r, logp, a: r.detach().clamp(max=1.5) * a * logp),
}


@pytest.mark.parametrize("name", [*PUBLISHED, *PUBLISHED_GRADIENTS])
def test_gates_reproduce_published_losses(name: str) -> None:
    gate, published = (PUBLISHED | PUBLISHED_GRADIENTS)[name]
    logp_new, logp_old, _, advantage = samples()
    expected = -published((logp_new - logp_old).exp(), logp_new, advantage)
    loss, gradient = ours(gate)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logp_new)[0])
    if name in PUBLISHED:
        torch.testing.assert_close(loss, expected.detach())


def test_p3o_with_its_kl_term() -> None:
    logp_new, logp_old, _, advantage = samples()
    kl = (logp_new - logp_old).square()
    expected = -sigmoid_surrogate((logp_new - logp_old).exp(), 4.0) * advantage + 0.1 * kl
    found = surrogate(
        logp_new,
        logp_old,
        logp_old,
        advantage,
        gate=gates.Sapo(sharpness=4.0, sharpness_neg=4.0),
        ref_gate=gates.Open(),
        dual=Detached(),
        kl_coef=0.1,
        kl=kl,
    )
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.kl, kl)
    torch.testing.assert_close(found.log_ratio, logp_new - logp_old)
    torch.testing.assert_close(
        torch.autograd.grad(found.loss.sum(), logp_new, retain_graph=True)[0],
        torch.autograd.grad(expected.sum(), logp_new)[0],
    )


def test_awr_is_the_log_gate_on_exponential_advantages() -> None:
    rng = np.random.default_rng(0)
    reward, done = rng.standard_normal((N, 1)), np.ones((N, 1), bool)
    rollout = Rollout(reward, reward, reward, done, done, reward * 0, reward * 0, {})
    advantage = torch.from_numpy(Exponential(gae=GAE(), beta=0.5, max_weight=4.0)(rollout)[0][:, 0])
    logp_new, logp_old, _, _ = samples()
    a = torch.from_numpy((reward - reward.mean()) / reward.std())[:, 0]
    awr = -(torch.exp(a / 0.5).clamp(max=4.0) * logp_new).sum()
    found = surrogate(
        logp_new, logp_old, logp_old, advantage, gate=gates.Log(), ref_gate=gates.Open(), dual=Detached(), kl_coef=0.0
    )
    torch.testing.assert_close(
        torch.autograd.grad(found.loss.sum(), logp_new, retain_graph=True)[0], torch.autograd.grad(awr, logp_new)[0]
    )


@pytest.mark.parametrize("file", sorted((conf_dir() / "gate").glob("*.yaml")), ids=lambda f: f.stem)
def test_gradient_is_that_of_a_detached_weight(file: Path) -> None:
    gate = instantiate(OmegaConf.load(file))
    logp_new, logp_old, _, advantage = samples()
    detached = -weight(gate, logp_new - logp_old, advantage) * advantage * logp_new
    torch.testing.assert_close(ours(gate)[1], torch.autograd.grad(detached.sum(), logp_new)[0])


def test_the_penalty_without_an_exact_kl_is_k3_to_the_reference() -> None:
    logp_new, _, logp_ref, _ = samples()
    x = logp_ref - logp_new
    k3 = x.exp() - 1 - x
    plain, gradient = ours(gates.Clip())
    loss, penalised = ours(gates.Clip(), kl_coef=0.3)
    torch.testing.assert_close(loss - plain, 0.3 * k3.detach())
    torch.testing.assert_close(penalised - gradient, 0.3 * torch.autograd.grad(k3.sum(), logp_new)[0])


# two gates


def joined(dual: Dual, gate: Curve, ref_gate: Curve) -> tuple[Tensor, Tensor]:
    """Value and effective weight of a dual gate."""
    logp_new, logp_old, logp_ref, advantage = samples()
    out = surrogate(logp_new, logp_old, logp_ref, advantage, gate=gate, ref_gate=ref_gate, dual=dual, kl_coef=0.0)
    (slope,) = torch.autograd.grad(out.gate_value.sum(), logp_new)
    return out.gate_value.detach(), slope


@pytest.mark.parametrize("name", ["detached", "product", "minimum", "geometric"])
def test_the_joins_of_two_gates_are_their_formulas(name: str) -> None:
    dual = instantiate(OmegaConf.load(conf_dir() / "dual" / f"{name}.yaml"))
    logp_new, logp_old, logp_ref, a = samples()
    d_old, d_ref = (logp_new - logp_old).detach(), (logp_new - logp_ref).detach()
    # g = sigma(4 d_old), h = sigma((b - sign(A) d_ref)/tau)/sigma(b/tau), both with their slopes written out
    sign, b, tau = torch.where(a >= 0, 1.0, -1.0).double(), 0.75, 0.15
    g, inner = torch.sigmoid(4 * d_old), torch.sigmoid((b - sign * d_ref) / tau)
    top = 1 / (1 + math.exp(-b / tau))
    g_slope, h, h_slope = 4 * g * (1 - g), inner / top, -sign / tau * inner * (1 - inner) / top
    middle = torch.sigmoid(4 * (0.5 * d_old + 0.5 * d_ref))
    expected = {
        "detached": (g * h, g_slope * h),
        "product": (g * h, g_slope * h + g * h_slope),
        "minimum": (torch.minimum(g, h), torch.where(g < h, g_slope, h_slope)),
        "geometric": (middle, 4 * middle * (1 - middle)),
    }[name]
    ref_gate = gates.Open() if name == "geometric" else gates.Budget(sharpness=1 / tau, budget=b)
    value, slope = joined(dual, gates.SigmoidLog(sharpness=4.0), ref_gate)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(slope, expected[1])


@pytest.mark.parametrize("dual", [Detached(), Product()], ids=["detached", "product"])
def test_an_open_reference_gate_changes_nothing(dual: Dual) -> None:
    plain = joined(Detached(), gates.SigmoidSigned(), gates.Open())
    torch.testing.assert_close(joined(dual, gates.SigmoidSigned(), gates.Open()), plain)
    logp_new, logp_old, _, a = samples()
    torch.testing.assert_close(plain[1], weight(gates.SigmoidSigned(), logp_new - logp_old, a))


@dataclass(frozen=True, kw_only=True)
class OneSided(Curve):
    """h = sigma((b - d)/tau), b = .5, tau = b/5: fades where pi > pi_ref, whatever the sign of A."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return ((0.5 - d) / 0.1).sigmoid()


def test_the_product_pushes_bad_actions_up_and_the_detached_join_never_does() -> None:
    d_ref = torch.linspace(-2, 2, 401, dtype=torch.float64)
    a = -torch.ones_like(d_ref)
    slopes = {}
    for dual in (Detached(), Product()):
        logp_new = torch.zeros_like(d_ref).requires_grad_()
        out = surrogate(
            logp_new, logp_new.detach(), -d_ref, a, gate=gates.SigmoidLog(), ref_gate=OneSided(), dual=dual, kl_coef=0.0
        )
        slopes[type(dual)] = torch.autograd.grad(out.loss.sum(), logp_new)[0]
    assert (slopes[Detached] >= 0).all()  # descending the loss lowers log pi of a bad action ...
    assert slopes[Product][d_ref < 0].min() > 0
    at = int((d_ref - 0.55).abs().argmin())  # ... which the product raises where h falls faster than g rises
    sigma = 1 / (1 + math.exp(0.5))
    assert slopes[Product][at].item() == pytest.approx(2.5 * sigma - 0.5 * 10 * sigma * (1 - sigma))
    assert slopes[Product][at] < -0.1


def test_a_geometric_anchor_refuses_what_it_would_ignore() -> None:
    check_dual(Geometric(), gates.Open())
    check_dual(Minimum(), gates.Budget())
    with pytest.raises(ConfigError, match=r"dual=geometric: .*gate@ref_gate must stay open"):
        check_dual(Geometric(), gates.Budget())
    for anchor in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match=rf"dual\.anchor={anchor}: must lie strictly between 0 and 1"):
            Geometric(anchor=anchor)


def test_reductions() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert (token_mean(mask) * x).sum().item() == pytest.approx(16 / 4)
    assert (sequence_mean(mask) * x).sum().item() == pytest.approx((2 + 10) / 2)


# bias and improvement


@pytest.mark.parametrize(("k", "sign"), [(2.0, -1), (10.0, 1), (5.0, 1), (4.0, 1), (4.0, -1)])
def test_counter_example_to_the_naive_bound(k: float, sign: int) -> None:
    """One state, old (1/2, 1/2), A = (1, -1), pi = (1/2+t, 1/2-t): gain 2t, surrogate tanh(kt)/2, penalty O(t^2)."""
    t = sign * torch.tensor([1e-4, 1e-3, 1e-2], dtype=torch.float64)
    new = torch.stack([0.5 + t, 0.5 - t])
    advantage = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    gain = (new * advantage).sum(0)
    lower = (0.5 * gates.Sigmoid(sharpness=k)((new / 0.5).log(), advantage.expand_as(new)) * advantage).sum(0)
    kl = (0.5 * (0.5 / new).log()).sum(0)
    torch.testing.assert_close(gain, 2 * t)
    torch.testing.assert_close(lower, torch.tanh(k * t) / 2)
    violated = gain < lower - 20 * kl
    assert violated.tolist() == ([False, False, False] if k == 4 else [True, True, True])


@pytest.mark.parametrize("k", [2.0, 4.0, 5.0, 10.0])
def test_bias_of_the_normalised_sigmoid(k: float) -> None:
    d = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    r = d.exp()
    w = weight(gates.Sigmoid(sharpness=k, scale="unit"), d, torch.ones_like(d))
    torch.testing.assert_close(w - r, -r * torch.tanh(k * (r - 1) / 2) ** 2, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("k", "constant"), [(2.0, 6.81), (4.0, 19.2), (5.0, 28.2), (10.0, 103.0)])
def test_bias_is_bounded_by_the_kl_divergence(k: float, constant: float) -> None:
    """|E_old[(w/w(1) - r) A s]| <= E_old[r tanh^2] sup|A s| <= C_k KL, C_k = sup r tanh^2/(sqrt r - 1)^2 (KL >= Hellinger^2)."""
    r = torch.linspace(1e-3, 30, 300_000, dtype=torch.float64)
    supremum = (r * torch.tanh(k * (r - 1) / 2) ** 2 / (r.sqrt() - 1) ** 2).max().item()
    assert supremum == pytest.approx(constant, rel=0.004)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 500, 4), generator=generator, dtype=torch.float64) * torch.rand(500, 1, generator=generator)
    old, new = torch.softmax(logits, -1)
    d = (new / old).log()
    bias = (old * (weight(gates.Sigmoid(sharpness=k, scale="unit"), d, d * 0 + 1) - d.exp()).abs()).sum(-1)
    for kl in (-(old * d).sum(-1), (new * d).sum(-1)):
        assert (bias <= constant * 1.004 * kl).all()


def random_mdps(num: int, gamma: float) -> dict[str, Tensor]:
    """Exact values of num random MDPs (4 states, 3 actions) under an old and a new policy; E_rho is unnormalised."""
    generator = torch.Generator().manual_seed(1)
    move = torch.softmax(3 * torch.randn((num, 4, 3, 4), generator=generator, dtype=torch.float64), -1)
    reward = torch.randn((num, 4, 3), generator=generator, dtype=torch.float64)
    logits = torch.randn((2, num, 4, 3), generator=generator, dtype=torch.float64)
    logits[1] = logits[0] + logits[1] * torch.rand((num, 1, 1), generator=generator, dtype=torch.float64)
    old, new = torch.softmax(logits, -1)
    start = torch.full((num, 4), 0.25, dtype=torch.float64)

    def solve(policy: Tensor) -> tuple[Tensor, Tensor]:
        chain = torch.eye(4, dtype=torch.float64) - gamma * torch.einsum("nsa,nsat->nst", policy, move)
        return torch.linalg.solve(chain, (policy * reward).sum(-1)), torch.linalg.solve(chain.mT, start)

    (value, rho), (value_new, _) = solve(old), solve(new)
    advantage = reward + gamma * torch.einsum("nsat,nt->nsa", move, value) - value[..., None]
    tv = (new - old).abs().sum(-1) / 2
    return {
        "gain": ((value_new - value) * start).sum(-1),
        "d": (new / old).log(),
        "advantage": advantage,
        "measure": rho[..., None] * old,
        "trpo": 4 * advantage.abs().amax((1, 2)) * gamma / (1 - gamma) ** 2 * tv.amax(1) ** 2,
        "cpo": 2 * gamma / (1 - gamma) * (new * advantage).sum(-1).abs().amax(1) * (rho * tv).sum(-1),
    }


@pytest.mark.parametrize("k", [2.0, 10.0])
@pytest.mark.parametrize("gate", ["sigmoid", "pessimistic"])
def test_repaired_bounds_hold_on_random_mdps_and_fail_without_the_occupancy_term(gate: str, k: float) -> None:
    m = random_mdps(400, gamma=0.9)
    a, d, r = m["advantage"], m["d"], m["d"].exp()
    if gate == "sigmoid":  # h = 1 + (g - g(1))/w(1), less its distance to r
        h = 1 + gates.Sigmoid(sharpness=k, scale="unit")(d, a) - 0.5 / (k / 4)
        inner = h * a - (h - r).abs() * a.abs()
    else:  # min(r A, h A)
        inner = gates.SigmoidSigned(sharpness=k, cap=1e9)(d, a) * a
    lower = (m["measure"] * inner).sum((1, 2))
    assert (m["gain"] < lower).sum() > 10
    for occupancy in (m["trpo"], m["cpo"]):
        assert (m["gain"] >= lower - occupancy - 1e-9).all()
