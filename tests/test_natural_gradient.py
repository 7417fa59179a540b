"""The natural gradient against torch.linalg, and how far each gate lets a policy drift."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gate_options import load_gate
from torch import Tensor
from update_parts import Make, MakeBatch, algorithm, both_kinds, natural_gradient, noise, setup, sgd

from rgpo.core import gates
from rgpo.core.kl_penalty import FixedPenalty, RewardKL
from rgpo.errors import ConfigError
from rgpo.learning.loss import standardize
from rgpo.learning.natural_gradient import conjugate_gradient, line_search


def test_conjugate_gradient_solves_what_linalg_solves() -> None:
    root = noise(12, 12, dtype=torch.float64)
    matrix, b = root @ root.T + 0.5 * torch.eye(12, dtype=torch.float64), noise(12, seed=1, dtype=torch.float64)
    x, residual = conjugate_gradient(lambda v: matrix @ v, b, 40, tolerance=1e-20)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-7, atol=1e-8)
    assert residual < 1e-18
    rough, residual = conjugate_gradient(lambda v: matrix @ v, b, 3)
    assert residual == pytest.approx(((b - matrix @ rough).square().sum() / b.square().sum()).item())
    assert residual > 1e-6
    zero, residual = conjugate_gradient(lambda v: matrix @ v, b * 0, 10)
    assert (zero == 0).all()
    assert residual == 0


@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        (lambda f: (f, 0.01 * f), 1.0),
        (lambda f: (f, 0.03 * f**2), 0.5),  # KL too large at first
        (lambda f: (0.3 - f, 0.0), 0.25),  # no improvement at first
        (lambda f: (f, 1.0), 0.0),
        (lambda f: (-f, 0.0), 0.0),
        (lambda f: (0.0, 0.0), 0.0),
        (lambda f: (math.nan, 0.0), 0.0),
        (lambda f: (1.0, math.nan), 0.0),
    ],
    ids=["at_once", "kl", "improvement", "kl_never", "improvement_never", "nothing_gained", "nan", "nan_kl"],
)
def test_line_search(evaluate: Callable[[float], tuple[float, float]], expected: float) -> None:
    assert line_search(evaluate, kl_max=0.01, shrink=0.5, num_tries=5) == expected


@both_kinds
def test_natural_gradient_stays_in_its_trust_region(make_policy: Make, make_batch: MakeBatch, discrete: bool) -> None:
    policy = make_policy(discrete=discrete)
    batch, before = make_batch(policy, 512), policy.flat.clone()
    update = natural_gradient(critic_epochs=2, critic_minibatches=4)
    setup(update, policy, gates.Identity())
    metrics, after = update(policy, batch, 0.0)
    assert metrics["trpo/line_search_success"] == 1
    assert after.kl.shape == (1, 512)
    assert 0.002 < after.kl.mean() <= 0.01
    assert torch.equal(policy.measure_shift(batch).kl, after.kl[0])  # the critic's epochs leave the actor alone
    moved = policy.flat != before
    count = policy.num_actor_parameters
    assert moved[:count].float().mean() > 0.9
    assert moved[count:].float().mean() > 0.9
    advantage = standardize(batch.samples.advantage)
    assert (policy.measure_shift(batch).log_ratio.exp() * advantage).mean() > advantage.mean()


def test_a_natural_gradient_step_solves_with_the_explicit_fisher_matrix(make_policy: Make, make_batch: MakeBatch) -> None:
    """theta' - theta = fraction sqrt(2 delta/s'(F + damping)s) s, (F + damping) s = g, F = mean J'(diag p - pp')J."""
    policy = make_policy(discrete=True, observation=2, action=3, hidden_sizes=(3,), seed=2)
    batch, start, count = make_batch(policy, 128), policy.flat.clone(), policy.num_actor_parameters
    update = natural_gradient(cg_iterations=60, cg_damping=0.1, critic_epochs=1, critic_minibatches=1)
    setup(update, policy, gates.Identity())
    metrics = update._actor_step(policy, batch)

    def logits(flat: Tensor) -> Tensor:
        return policy.distribution(flat, batch.view.observation)[0]

    jacobian = torch.func.jacrev(logits)(start)[..., :count].double()
    p = torch.softmax(logits(start).double(), -1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nap,nab,nbq->pq", jacobian, inner, jacobian) / len(p)
    damped = fisher + 0.1 * torch.eye(count, dtype=torch.float64)
    score = torch.nn.functional.one_hot(batch.view.action, 3) - p
    g = torch.einsum("n,na,nap->p", standardize(batch.samples.advantage).double(), score, jacobian) / len(p)
    s = torch.linalg.solve(damped, g)
    step = metrics["trpo/step_fraction"] * (2 * 0.01 / (s @ damped @ s)).sqrt() * s
    torch.testing.assert_close((policy.flat - start)[:count].double(), step, rtol=1e-3, atol=1e-5)
    assert metrics["trpo/quadratic_form"] == pytest.approx((s @ damped @ s).item(), rel=1e-4)
    assert metrics["grad/norm_mean"] == pytest.approx(g.norm().item(), rel=1e-4)


def test_natural_gradient_refuses_what_it_would_ignore() -> None:
    trpo = {"gate": gates.Identity(), "update": natural_gradient()}
    algorithm(**trpo)
    algorithm(**trpo | {"penalty": RewardKL(coef=0.05)})
    algorithm(penalty=FixedPenalty(coef=0.1, estimator="exact", anchor="old"), update=sgd())
    with pytest.raises(ConfigError, match=r"penalty: update=natural_gradient has a trust region .*use penalty=none"):
        algorithm(**trpo | {"penalty": FixedPenalty(coef=0.1, estimator="exact", anchor="old")})
    with pytest.raises(ConfigError, match=r"gate=open: has zero gradient"):
        algorithm(gate=gates.Open())


def test_an_algorithm_describes_its_parts() -> None:
    """Parts that do nothing are left out; a second gate and its combination are shown, and where the KL is."""
    assert list(algorithm().describe()) == ["gate", "advantage", "update"]
    assert algorithm().describe()["gate"] == "Sigmoid(sharpness=10)"
    dual = algorithm(ref_gate=load_gate("budget"), penalty=RewardKL(coef=0.05))
    assert list(dual.describe()) == ["gate", "ref_gate", "gate_combination", "advantage", "penalty", "update"]
    assert dual.describe()["penalty"] == "RewardKL(coef=0.05)"
    assert dual.requirements.reference == "gate@ref_gate"
    assert algorithm(penalty=RewardKL(coef=0.05)).requirements.reference == "penalty"
    assert algorithm().requirements.reference == ""


# drift


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sign_aware_gate_holds_the_trust_region_that_the_symmetric_one_leaves(
    make_policy: Make, make_batch: MakeBatch, seed: int
) -> None:
    """Thirty epochs on one fixed batch of random advantages, no penalty: nothing pulls the literal gate back."""
    kl = {}
    for name in ("clip", "sign_aware_sigmoid", "sigmoid"):
        policy = make_policy(observation=11, hidden_sizes=(32, 32), policy_gain=0.01, seed=seed)
        batch = make_batch(policy, 512, seed=seed)
        update = sgd(num_epochs=30, num_minibatches=8, lr=1e-3, anneal_lr=False)
        setup(update, policy, load_gate(name), seed=seed)
        update(policy, batch, 0.0)
        kl[name] = policy.measure_shift(batch).kl.mean().item()
    assert 0.5 * kl["clip"] < kl["sign_aware_sigmoid"] < 2 * kl["clip"]
    assert kl["sigmoid"] > 3 * kl["sign_aware_sigmoid"]
    assert kl["sigmoid"] > 0.1
