"""The theory's bounds on bias and improvement, and the counter-example to the naive one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rgpo.core import gates
from rgpo.core.gate import weight


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
def test_bias_of_the_normalized_sigmoid(k: float) -> None:
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
    """Exact values of num random MDPs (4 states, 3 actions) under an old and a new policy; E_rho is unnormalized."""
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
        inner = gates.SignAwareSigmoid(sharpness=k, cap=1e9)(d, a) * a
    lower = (m["measure"] * inner).sum((1, 2))
    assert (m["gain"] < lower).sum() > 10
    for occupancy in (m["trpo"], m["cpo"]):
        assert (m["gain"] >= lower - occupancy - 1e-9).all()
