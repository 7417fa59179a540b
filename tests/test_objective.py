"""The objective against published losses written out, and the joins of two gates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gate_options import NAMES, load_gate
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from update_parts import gae

from rgpo.core import gates
from rgpo.core.advantages import Exponential
from rgpo.core.divergences import k3
from rgpo.core.gate import Gate, weight
from rgpo.core.rollout import Rollout
from rgpo.core.sequence import sequence_mean, token_mean
from rgpo.core.surrogate import Combination, Detached, Geometric, Minimum, Product, check_combination, surrogate
from rgpo.errors import ConfigError
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
    d_ref = logp_new - logp_ref
    settings = {"gate": gate, "ref_gate": gates.Open(), "combine": Detached(), "kl_coef": kl_coef, "logp_old": logp_old}
    settings |= change
    loss = surrogate(logp_new - logp_old, d_ref, advantage, k3(-d_ref), **settings).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), logp_new)[0]


def sigmoid_surrogate(r: Tensor, tau: Tensor | float) -> Tensor:
    return torch.sigmoid(tau * (r - 1)) * 4 / tau


# The published objectives, to be maximized, as their papers write them: f(r, log pi, A).
PUBLISHED: dict[str, tuple[Gate, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "ppo_clip": (load_gate("clip"), lambda r, logp, a: torch.min(r * a, r.clamp(0.8, 1.2) * a)),
    "dapo_clip_higher": (
        load_gate("dapo"),
        lambda r, logp, a: torch.min(r * a, r.clamp(0.8, 1.28) * a),
    ),
    "dual_clip": (
        load_gate("clip", cap=3.0),
        lambda r, logp, a: torch.where(
            a < 0,
            torch.max(torch.min(r * a, r.clamp(0.8, 1.2) * a), 3.0 * a),
            torch.min(r * a, r.clamp(0.8, 1.2) * a),
        ),
    ),
    "importance_sampling": (gates.Identity(), lambda r, logp, a: r * a),
    "rgpo": (gates.Sigmoid(sharpness=5.0), lambda r, logp, a: torch.sigmoid(5 * (r - 1)) * a),
    "sapo": (load_gate("sapo"), lambda r, logp, a: sigmoid_surrogate(r, torch.where(a >= 0, 1.0, 1.05).double()) * a),
    "p3o": (gates.Sapo(sharpness=4.0, sharpness_neg=4.0), lambda r, logp, a: sigmoid_surrogate(r, 4.0) * a),
    "spo": (gates.Spo(eps_high=0.2), lambda r, logp, a: r * a - a.abs() / (2 * 0.2) * (r - 1) ** 2),
}
# ... and those that are only defined by their gradient, with a stop-gradient or without a ratio
PUBLISHED_GRADIENTS: dict[str, tuple[Gate, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
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
    d = logp_new - logp_old
    gate = load_gate("p3o")
    found = surrogate(d, d, advantage, kl, gate=gate, ref_gate=gates.Open(), combine=Detached(), kl_coef=0.1)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.gate_value, gate(d, advantage))
    torch.testing.assert_close(
        torch.autograd.grad(found.loss.sum(), logp_new, retain_graph=True)[0],
        torch.autograd.grad(expected.sum(), logp_new)[0],
    )


def test_awr_is_the_log_gate_on_exponential_advantages() -> None:
    rng = np.random.default_rng(0)
    reward, done = rng.standard_normal((N, 1)), np.ones((N, 1), bool)
    nothing = reward * 0
    rollout = Rollout(reward=reward, terminated=done, done=done, value=nothing, next_value=nothing, metrics={})
    advantage = torch.from_numpy(Exponential(gae=gae(normalize="none"), beta=0.5, max_weight=4.0)(rollout)[0][:, 0])
    logp_new, logp_old, _, _ = samples()
    a = torch.from_numpy((reward - reward.mean()) / reward.std())[:, 0]
    awr = -(torch.exp(a / 0.5).clamp(max=4.0) * logp_new).sum()
    d = logp_new - logp_old
    found = surrogate(d, d, advantage, d * 0, gate=gates.Log(), ref_gate=gates.Open(), combine=Detached(), kl_coef=0.0)
    torch.testing.assert_close(
        torch.autograd.grad(found.loss.sum(), logp_new, retain_graph=True)[0], torch.autograd.grad(awr, logp_new)[0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_a_detached_weight(name: str) -> None:
    gate = load_gate(name)
    logp_new, logp_old, _, advantage = samples()
    w = weight(gate, logp_new - logp_old, advantage, logp_old)
    detached = -w * advantage * logp_new
    torch.testing.assert_close(ours(gate)[1], torch.autograd.grad(detached.sum(), logp_new)[0])


def test_shapes_must_agree() -> None:
    d, column = torch.zeros(4), torch.zeros(4, 1)
    settings = {"gate": gates.Log(), "ref_gate": gates.Open(), "combine": Detached(), "kl_coef": 0.0}
    assert surrogate(d, d, d, d, **settings).loss.shape == (4,)
    for i in range(4):
        tensors = [d, d, d, d]
        tensors[i] = column
        with pytest.raises(AssertionError):
            surrogate(*tensors, **settings)


# two gates


def joined(combine: Combination, gate: Gate, ref_gate: Gate) -> tuple[Tensor, Tensor]:
    """Value and effective weight of two gates."""
    logp_new, logp_old, logp_ref, advantage = samples()
    d_old, d_ref = logp_new - logp_old, logp_new - logp_ref
    out = surrogate(d_old, d_ref, advantage, d_old * 0, gate=gate, ref_gate=ref_gate, combine=combine, kl_coef=0.0)
    (slope,) = torch.autograd.grad(out.gate_value.sum(), logp_new)
    return out.gate_value.detach(), slope


@pytest.mark.parametrize("name", ["detached", "product", "minimum", "geometric"])
def test_the_joins_of_two_gates_are_their_formulas(name: str) -> None:
    combine = instantiate(OmegaConf.load(conf_dir() / "gate_combination" / f"{name}.yaml"))
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
    value, slope = joined(combine, gates.SigmoidLog(sharpness=4.0), ref_gate)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(slope, expected[1])


@pytest.mark.parametrize("combine", [Detached(), Product()], ids=["detached", "product"])
def test_an_open_reference_gate_changes_nothing(combine: Combination) -> None:
    gate = load_gate("sign_aware_sigmoid")
    plain = joined(Detached(), gate, gates.Open())
    torch.testing.assert_close(joined(combine, gate, gates.Open()), plain)
    logp_new, logp_old, _, a = samples()
    torch.testing.assert_close(plain[1], weight(gate, logp_new - logp_old, a))


@dataclass(frozen=True, kw_only=True)
class OneSided(Gate):
    """h = sigma((b - d)/tau), b = .5, tau = b/5: fades where pi > pi_ref, whatever the sign of A."""

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return ((0.5 - d) / 0.1).sigmoid()


def test_the_product_pushes_bad_actions_up_and_the_detached_join_never_does() -> None:
    d_ref = torch.linspace(-2, 2, 401, dtype=torch.float64)
    a = -torch.ones_like(d_ref)
    slopes = {}
    for combine in (Detached(), Product()):
        logp_new = torch.zeros_like(d_ref).requires_grad_()
        two = {"gate": load_gate("sigmoid_log"), "ref_gate": OneSided(), "combine": combine}
        out = surrogate(logp_new, logp_new + d_ref, a, d_ref * 0, kl_coef=0.0, **two)
        slopes[type(combine)] = torch.autograd.grad(out.loss.sum(), logp_new)[0]
    assert (slopes[Detached] >= 0).all()  # descending the loss lowers log pi of a bad action ...
    assert slopes[Product][d_ref < 0].min() > 0
    at = int((d_ref - 0.55).abs().argmin())  # ... which the product raises where h falls faster than g rises
    sigma = 1 / (1 + math.exp(0.5))
    assert slopes[Product][at].item() == pytest.approx(2.5 * sigma - 0.5 * 10 * sigma * (1 - sigma))
    assert slopes[Product][at] < -0.1


def test_a_geometric_anchor_refuses_what_it_would_ignore() -> None:
    budget = load_gate("budget")
    check_combination(Geometric(anchor=0.5), gates.Log(), gates.Open())
    check_combination(Minimum(), gates.Log(), budget)
    with pytest.raises(ConfigError, match=r"gate_combination=geometric: .*leave gate@ref_gate=open"):
        check_combination(Geometric(anchor=0.5), gates.Log(), budget)
    for anchor in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match=rf"gate_combination\.anchor={anchor}: must lie strictly between 0 and 1"):
            Geometric(anchor=anchor)


def test_reductions() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 99.0, 99.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert (token_mean(mask) * x).sum().item() == pytest.approx(16 / 4)
    assert (sequence_mean(mask) * x).sum().item() == pytest.approx((2 + 10) / 2)
