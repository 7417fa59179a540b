"""Updates against torch.optim, plain torch.nn modules and torch.linalg; and how far each gate lets a policy drift."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rgpo import gates
from rgpo.advantages import GAE
from rgpo.algorithm import Algorithm
from rgpo.batch import Batch
from rgpo.climbing import STATISTICS
from rgpo.errors import ConfigError, NonFiniteError
from rgpo.objective import Detached, surrogate
from rgpo.penalties import FixedPenalty, NoPenalty
from rgpo.policies.actor_critic import ActorCritic
from rgpo.runner import RATIO_MOVED
from rgpo.updates.adam import AdamState, adam, bias_corrections, clip_by_norm
from rgpo.updates.losses import actor_critic_loss, policy_loss, standardise, value_loss
from rgpo.updates.minibatch_adam import MinibatchAdam, resolve_compile
from rgpo.updates.natural_gradient import NaturalGradient, conjugate_gradient, line_search
from rgpo.updates.sgd import SGD

Make = Callable[..., ActorCritic]
MakeBatch = Callable[..., Batch]
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["gaussian", "categorical"])


def objective(gate: Any) -> Any:
    return partial(surrogate, gate=gate, ref_gate=gates.Open(), dual=Detached())


def nothing() -> None:
    """After an epoch."""


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Adam and the pieces of the loss


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-1])
def test_adam_is_torchs(dtype: torch.dtype, tolerance: float, eps: float) -> None:
    start, target = noise(20, seed=1, dtype=dtype), noise(20, seed=2, dtype=dtype)
    theirs = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=1e-2, eps=eps)
    ours = AdamState.start(start)
    for i in range(50):
        lr = 1e-2 * (1 - i / 100)
        optimiser.param_groups[0]["lr"] = lr
        theirs.grad = (theirs.detach() - target) ** 3
        optimiser.step()
        corrections = bias_corrections(lr, i, 1)[0].to(dtype)
        ours = adam(ours, (ours.parameters - target) ** 3, corrections, eps)
        torch.testing.assert_close(ours.parameters, theirs.detach(), rtol=0, atol=tolerance)
    assert (ours.parameters - start).abs().max() > 0.1


@pytest.mark.parametrize("max_norm", [0.5, 1.0, 1e6])
def test_clip_by_norm_is_torchs(max_norm: float) -> None:
    parameter = nn.Parameter(torch.zeros(30))
    parameter.grad = noise(30)
    ours, norm = clip_by_norm(parameter.grad.clone(), max_norm)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_([parameter], max_norm))
    torch.testing.assert_close(ours, parameter.grad)
    whole, same = clip_by_norm(noise(30), None)
    torch.testing.assert_close(whole, noise(30))
    torch.testing.assert_close(same, norm)


def test_value_loss_is_cleanrls() -> None:
    value, target, old = noise(3, 100)
    clipped = old + torch.clamp(value - old, -0.2, 0.2)
    written_out = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2).mean()
    torch.testing.assert_close(value_loss(value, target, old, 0.2).mean(), written_out)
    torch.testing.assert_close(value_loss(value, target, old, None).mean(), 0.5 * nn.functional.mse_loss(value, target))
    assert written_out > value_loss(value, target, old, None).mean()
    far = torch.tensor([3.0], requires_grad=True)  # beyond the clip on the way to its target: no gradient
    loss = value_loss(far, torch.tensor([4.0]), torch.tensor([0.0]), 0.2)
    assert torch.autograd.grad(loss, far)[0] == 0


def test_standardise() -> None:
    x = 3 + 2 * noise(50)
    torch.testing.assert_close(standardise(x), (x - x.mean()) / (x.std() + 1e-8))


@both_kinds
def test_the_penalty_in_the_loss_is_the_exact_kl(make_policy: Make, make_batch: MakeBatch, discrete: bool) -> None:
    policy = make_policy(discrete=discrete)
    batch = make_batch(policy, 64)
    flat = (policy.parameters + 0.1 * noise(len(policy.parameters))).requires_grad_()
    new = policy.distribution(flat, batch.observation)
    loss_of = partial(policy_loss, new, batch, batch.advantage, objective=objective(gates.Clip()))
    plain, penalised = loss_of(kl_coef=0.7)[0], loss_of(kl_coef=0.7, penalised=True)[0]
    kl = new.kl_from(batch.old).mean()
    torch.testing.assert_close(penalised - plain, 0.7 * kl)
    difference = torch.autograd.grad(penalised - plain, flat, retain_graph=True)[0]
    torch.testing.assert_close(difference, 0.7 * torch.autograd.grad(kl, flat)[0], rtol=1e-4, atol=1e-6)


def test_the_total_loss_is_the_sum_of_its_parts(make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, 64)
    total, (actor, critic, furthest) = actor_critic_loss(
        policy.parameters,
        batch,
        torch.tensor(0.0),
        policy=policy,
        objective=objective(gates.Clip()),
        penalised=False,
        normalize=True,
        vf_coef=0.5,
        ent_coef=0.01,
        value_clip=0.2,
    )
    entropy = policy.distribution(policy.parameters, batch.observation).entropy().mean()
    torch.testing.assert_close(total, actor + 0.5 * critic - 0.01 * entropy)
    torch.testing.assert_close(actor, torch.tensor(0.0), atol=1e-6, rtol=0)  # r = 1 and standardised advantages
    assert furthest < RATIO_MOVED


# minibatch Adam


@pytest.mark.parametrize("num_minibatches", [1, 3, 12])
def test_every_sample_is_visited_once_an_epoch(make_policy: Make, make_batch: MakeBatch, num_minibatches: int) -> None:
    batch = make_batch(make_policy(), 24)._replace(advantage=torch.arange(24.0))
    seen: list[list[float]] = []

    def loss(flat: Tensor, minibatch: Batch, kl_coef: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        seen.append(minibatch.advantage.tolist())
        return flat.square().sum(), (flat.sum() * 0,) * 3

    optimiser = MinibatchAdam(
        torch.ones(2),
        loss,
        num_minibatches=num_minibatches,
        max_grad_norm=None,
        adam_eps=1e-5,
        compile=False,
        num_steps=3 * num_minibatches,
        seed=0,
    )
    orders = []
    for _ in range(3):
        assert optimiser.epoch(batch, 1e-3, 0.0).shape == (num_minibatches, len(STATISTICS))
        assert [len(x) for x in seen] == [24 // num_minibatches] * num_minibatches
        orders.append([x for minibatch in seen for x in minibatch])
        assert sorted(orders[-1]) == list(range(24))
        seen.clear()
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(("discrete", "observation", "action"), [(False, 5, 3), (True, 4, 2), (False, 17, 6)])
def test_the_ratio_is_one_on_the_first_minibatch_and_nowhere_after(
    make_policy: Make, make_batch: MakeBatch, discrete: bool, observation: int, action: int
) -> None:
    """Exactly 1 where the matrix product rounds a row alike in any minibatch, which not every BLAS does (17 -> 6)."""
    policy = make_policy(discrete=discrete, observation=observation, action=action, hidden_sizes=(64, 64))
    update = SGD(num_epochs=1, num_minibatches=8, lr=1e-3, compile=False)
    update.setup(policy, objective(gates.Sigmoid()), False, 1, 0)
    table = update.optimiser.epoch(make_batch(policy, 512), 1e-3, 0.0)
    moved = table[:, STATISTICS.index("ratio/abs_log_max")]
    assert moved[0] == 0 if observation < 17 else moved[0] < RATIO_MOVED
    assert (moved[1:] > 10 * RATIO_MOVED).all()


# SGD against PPO in plain torch


class PlainPPO(nn.Module):
    """Actor and critic as torch modules, started at the flat parameters of an ActorCritic with two hidden layers."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        tensors = [t.clone() for t in policy.unflatten(policy.parameters)]
        self.log_std = None if policy.discrete else nn.Parameter(tensors.pop(6))
        self.actor, self.critic = (self._network(tensors[i : i + 6]) for i in (0, 6))

    def _network(self, tensors: list[Tensor]) -> nn.Sequential:
        layers = [nn.Linear(*w.shape) for w in tensors[::2]]
        for layer, w, b in zip(layers, tensors[::2], tensors[1::2], strict=True):
            layer.weight.data, layer.bias.data = w.T.clone(), b
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def forward(self, observation: Tensor) -> tuple[torch.distributions.Distribution, Tensor]:
        output = self.actor(observation)
        if self.log_std is None:
            return torch.distributions.Categorical(logits=output), self.critic(observation)[:, 0]
        normal = torch.distributions.Normal(output, self.log_std.exp())
        return torch.distributions.Independent(normal, 1), self.critic(observation)[:, 0]

    def flat(self) -> Tensor:
        actor = [p for layer in self.actor if isinstance(layer, nn.Linear) for p in (layer.weight.T, layer.bias)]
        critic = [p for layer in self.critic if isinstance(layer, nn.Linear) for p in (layer.weight.T, layer.bias)]
        middle = [] if self.log_std is None else [self.log_std]
        return torch.cat([p.reshape(-1) for p in (*actor, *middle, *critic)]).detach()


@both_kinds
@pytest.mark.parametrize("value_clip", [0.2, None])
def test_sgd_is_ppo_in_plain_torch(make_policy: Make, make_batch: MakeBatch, discrete: bool, value_clip: float | None) -> None:
    policy = make_policy(discrete=discrete)
    plain, batch = PlainPPO(policy), make_batch(policy, 64)
    epochs: list[Tensor] = []
    update = SGD(num_epochs=2, num_minibatches=4, lr=3e-4, ent_coef=0.01, value_clip=value_clip, anneal_lr=True, compile=False)
    update.setup(policy, objective(gates.Clip()), False, 4, 7)
    update.num_updates = 1  # a quarter of the run is over: lr has fallen by a quarter
    metrics = update(policy, batch, 0.0, lambda: epochs.append(policy.parameters.clone()))

    optimiser = torch.optim.Adam(plain.parameters(), lr=0.75 * 3e-4, eps=1e-5)
    rng, losses, norms = np.random.default_rng(7), [], []
    for epoch in range(2):
        for index in np.split(rng.permutation(64), 4):
            b = batch.select(torch.from_numpy(index))
            distribution, value = plain(b.observation)
            ratio = (distribution.log_prob(b.action) - b.logp_old).exp()
            a = (b.advantage - b.advantage.mean()) / (b.advantage.std() + 1e-8)
            policy_part = torch.max(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
            unclipped = (value - b.value_target) ** 2
            clipped = (b.value_old + (value - b.value_old).clamp(-0.2, 0.2) - b.value_target) ** 2
            value_part = 0.5 * (unclipped if value_clip is None else torch.max(unclipped, clipped)).mean()
            optimiser.zero_grad()
            (policy_part - 0.01 * distribution.entropy().mean() + 0.5 * value_part).backward()
            norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.5).item())
            optimiser.step()
            losses.append((policy_part.item(), value_part.item()))
        torch.testing.assert_close(epochs[epoch], plain.flat(), rtol=0, atol=1e-6)
    assert torch.equal(epochs[-1], policy.parameters)
    assert (epochs[-1] - make_policy(discrete=discrete).parameters).abs().max() > 1e-3
    assert metrics["loss/policy"] == pytest.approx(np.mean(losses, 0)[0], abs=1e-5)
    assert metrics["loss/value"] == pytest.approx(np.mean(losses, 0)[1], rel=1e-4)
    assert metrics["grad/norm_mean"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert metrics["grad/norm_max"] == pytest.approx(max(norms), rel=1e-4)
    assert metrics["grad/clip_fraction"] == np.mean(np.array(norms) > 0.5)
    assert update.num_updates == 2


@pytest.mark.parametrize("normalize", ["minibatch", "none"])
def test_advantages_are_normalised_where_asked(make_policy: Make, make_batch: MakeBatch, normalize: str) -> None:
    """With constant parameters (lr tiny) the mean policy loss shows which advantages the gate saw."""
    policy = make_policy()
    batch = make_batch(policy, 64)._replace(advantage=5 + noise(64))
    update = SGD(num_epochs=1, num_minibatches=4, lr=1e-12, compile=False)
    update.setup(policy, objective(gates.Identity()), False, 1, 0, normalize)
    rng = np.random.default_rng(0)
    whole = update(policy, batch, 0.0, nothing)["loss/policy"]
    expected = -batch.advantage.mean().item() if normalize == "none" else 0.0
    assert whole == pytest.approx(expected, abs=1e-5)
    first = update.optimiser.epoch(batch, 1e-12, 0.0)[:, 0]
    rng.permutation(64)
    chunks = [batch.advantage[torch.from_numpy(i)] for i in np.split(rng.permutation(64), 4)]
    per_minibatch = [0.0] * 4 if normalize == "minibatch" else [-c.mean().item() for c in chunks]
    torch.testing.assert_close(first, torch.tensor(per_minibatch), rtol=1e-5, atol=1e-5)


def test_sgd_resumes_bit_for_bit(make_policy: Make, make_batch: MakeBatch) -> None:
    batch = make_batch(make_policy(), 64)

    def fresh() -> tuple[ActorCritic, SGD]:
        policy, update = make_policy(), SGD(num_epochs=2, num_minibatches=4, compile=False)
        update.setup(policy, objective(gates.SigmoidSigned()), False, 3, 0)
        return policy, update

    straight, update = fresh()
    update(straight, batch, 0.0, nothing)
    saved, parameters = update.state_dict(), straight.parameters.clone()
    update(straight, batch, 0.0, nothing)
    resumed, other = fresh()
    resumed.load_state_dict(parameters)
    other.load_state_dict(saved)
    other(resumed, batch, 0.0, nothing)
    assert torch.equal(resumed.parameters, straight.parameters)


def test_sgd_stops_at_a_loss_that_is_not_finite(make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, 64)
    batch.advantage[3] = math.nan
    update = SGD(num_epochs=1, num_minibatches=4, compile=False)
    update.setup(policy, objective(gates.Clip()), False, 1, 0)
    with pytest.raises(NonFiniteError, match=r"by gradient step [1-4] of 4; lower update\.lr=0\.0003"):
        update(policy, batch, 0.0, nothing)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (SGD, "num_epochs", 0),
        (SGD, "num_minibatches", 1.5),
        (SGD, "lr", 0.0),
        (SGD, "lr", math.nan),
        (SGD, "adam_eps", -1e-5),
        (SGD, "max_grad_norm", 0.0),
        (SGD, "value_clip", -0.2),
        (SGD, "vf_coef", -1.0),
        (SGD, "ent_coef", -0.1),
        (SGD, "compile", "maybe"),
        (NaturalGradient, "compile", "maybe"),
        (NaturalGradient, "kl_max", 0.0),
        (NaturalGradient, "cg_damping", 0.0),
        (NaturalGradient, "critic_lr", -1.0),
        (NaturalGradient, "cg_iterations", 0),
        (NaturalGradient, "line_search_tries", 2.5),
        (NaturalGradient, "line_search_shrink", 1.0),
    ],
)
def test_bad_values_are_refused(cls: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^update\.{key}={value}: .{{10,}}\.$"):
        cls(**{key: value})


def test_minibatches_must_divide_the_batch() -> None:
    SGD(num_minibatches=32).check(2048, "minibatch")
    NaturalGradient(critic_minibatches=32).check(2048, "batch")
    with pytest.raises(ConfigError, match=r"update\.num_minibatches=30: .* batch of 2048, for example 32 does"):
        SGD(num_minibatches=30).check(2048, "minibatch")
    with pytest.raises(ConfigError, match=r"update\.num_minibatches=64: leaves 1 sample"):
        SGD(num_minibatches=64).check(64, "minibatch")
    SGD(num_minibatches=64).check(64, "batch")
    with pytest.raises(ConfigError, match=r"update\.critic_minibatches=30: does not divide"):
        NaturalGradient(critic_minibatches=30).check(2048, "batch")


def test_compiling_is_resolved_and_explained() -> None:
    assert resolve_compile(False, 10**9) == (False, "not compiled (update.compile=false)")
    compiled, why = resolve_compile("auto", 10)
    assert not compiled
    assert why.startswith("not compiled")


# natural gradient


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
    batch, before = make_batch(policy, 512), policy.parameters.clone()
    update = NaturalGradient(kl_max=0.01, critic_epochs=2, critic_minibatches=4, compile=False)
    update.setup(policy, objective(gates.Identity()), False, 1, 0)
    called: list[float] = []
    metrics = update(policy, batch, 0.0, lambda: called.append(policy.moved(batch).kl.mean().item()))
    assert metrics["trpo/line_search_success"] == 1
    assert len(called) == 1
    assert 0.002 < called[0] <= 0.01
    assert policy.moved(batch).kl.mean().item() == called[0]  # the critic's epochs leave the actor alone
    moved = policy.parameters != before
    count = policy.num_actor_parameters
    assert moved[:count].float().mean() > 0.9
    assert moved[count:].float().mean() > 0.9
    advantage = standardise(batch.advantage)
    assert (policy.moved(batch).log_ratio.exp() * advantage).mean() > advantage.mean()


def test_a_natural_gradient_step_solves_with_the_explicit_fisher_matrix(make_policy: Make, make_batch: MakeBatch) -> None:
    """theta' - theta = fraction sqrt(2 delta/s'(F + damping)s) s, (F + damping) s = g, F = mean J'(diag p - pp')J."""
    policy = make_policy(discrete=True, observation=2, action=3, hidden_sizes=(3,), seed=2)
    batch, start, count = make_batch(policy, 128), policy.parameters.clone(), policy.num_actor_parameters
    update = NaturalGradient(cg_iterations=60, cg_damping=0.1, critic_epochs=1, critic_minibatches=1, compile=False)
    update.setup(policy, objective(gates.Identity()), False, 1, 0)
    metrics = update._actor_step(policy, batch)

    def logits(flat: Tensor) -> Tensor:
        return policy.distribution(flat, batch.observation)[0]

    jacobian = torch.func.jacrev(logits)(start)[..., :count].double()
    p = torch.softmax(logits(start).double(), -1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("nap,nab,nbq->pq", jacobian, inner, jacobian) / len(p)
    damped = fisher + 0.1 * torch.eye(count, dtype=torch.float64)
    score = torch.nn.functional.one_hot(batch.action, 3) - p
    g = torch.einsum("n,na,nap->p", standardise(batch.advantage).double(), score, jacobian) / len(p)
    s = torch.linalg.solve(damped, g)
    step = metrics["trpo/step_fraction"] * (2 * 0.01 / (s @ damped @ s)).sqrt() * s
    torch.testing.assert_close((policy.parameters - start)[:count].double(), step, rtol=1e-3, atol=1e-5)
    assert metrics["trpo/quadratic_form"] == pytest.approx((s @ damped @ s).item(), rel=1e-4)
    assert metrics["grad/norm_mean"] == pytest.approx(g.norm().item(), rel=1e-4)


def test_natural_gradient_refuses_what_it_would_ignore() -> None:
    def make(**change: Any) -> Algorithm:
        parts = {"gate": gates.Identity(), "penalty": NoPenalty(), "update": NaturalGradient()} | change
        return Algorithm(ref_gate=gates.Open(), dual=Detached(), advantage=GAE(), kl_spike_threshold=0.04, **parts)

    make()
    make(penalty=FixedPenalty(), update=SGD())
    with pytest.raises(ConfigError, match=r"penalty: natural_gradient keeps its own trust region .*use penalty=none"):
        make(penalty=FixedPenalty())
    with pytest.raises(ConfigError, match=r"gate=open: has weight 0 everywhere"):
        make(gate=gates.Open())


# drift


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sign_aware_gate_holds_the_trust_region_that_the_symmetric_one_leaves(
    make_policy: Make, make_batch: MakeBatch, seed: int
) -> None:
    """Thirty epochs on one fixed batch of random advantages, no penalty: nothing pulls the literal gate back."""
    kl = {}
    for gate in (gates.Clip(), gates.SigmoidSigned(sharpness=10.0), gates.Sigmoid(sharpness=10.0)):
        policy = make_policy(observation=11, hidden_sizes=(32, 32), policy_gain=0.01, seed=seed)
        batch = make_batch(policy, 512, seed=seed)
        update = SGD(num_epochs=30, num_minibatches=8, lr=1e-3, anneal_lr=False, compile=False)
        update.setup(policy, objective(gate), False, 1, seed)
        update(policy, batch, 0.0, nothing)
        kl[type(gate)] = policy.moved(batch).kl.mean().item()
    assert 0.5 * kl[gates.Clip] < kl[gates.SigmoidSigned] < 2 * kl[gates.Clip]
    assert kl[gates.Sigmoid] > 3 * kl[gates.SigmoidSigned]
    assert kl[gates.Sigmoid] > 0.1
