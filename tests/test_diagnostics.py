"""Statistics of an update against their definitions, and the gradient's variance against known processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gate_options import load_gate
from torch import Tensor
from update_parts import Make, MakeBatch, algorithm, gae, nudge, objective, sgd

from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlRollout
from rgpo.core import gates
from rgpo.core.advantages import Exponential
from rgpo.core.kl_penalty import AdaptivePenalty, FixedPenalty, NoPenalty
from rgpo.core.rollout import disjoint_groups
from rgpo.learning import diagnostics
from rgpo.learning.gradients import group_gradients
from rgpo.learning.samples import PolicyShift, Samples
from rgpo.runtime import schema


def shift(*log_ratios: Tensor, kl: Sequence[float] = (0.01,)) -> PolicyShift:
    """Epochs that ended at log_ratios, with these KL."""
    d = torch.stack(log_ratios)
    return PolicyShift(d, torch.tensor(kl)[:, None].expand_as(d), torch.full_like(d, 1.4))


def samples(advantage: Tensor) -> Samples:
    """Samples with these advantages."""
    return Samples(advantage * 0 - 1, None, advantage, advantage, advantage)


# the variance of the policy gradient


def test_variance_of_independent_gradients() -> None:
    """Gradients N(mu, diag(s^2)): tr Sigma = sum s^2 whatever the group size, and the relative form beside it."""
    rng = np.random.default_rng(0)
    mean, std = np.array([1.0, -2.0, 0.5]), np.array([1.0, 2.0, 3.0])
    for groups, size in ((8, 16), (32, 4), (16, 1)):
        found = []
        for _ in range(400):
            g = mean + std * rng.standard_normal((groups, size, 3))
            found.append(diagnostics.gradient_variance("before", torch.from_numpy(g.mean(1)), size)["gradvar/before"])
        assert np.mean(found) == pytest.approx(14.0, abs=4 * np.std(found) / 20)
        assert np.std(found) < 14.0
    one = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])  # mean (2, 1); squared distances 2, 2, 4
    row = diagnostics.gradient_variance("after", one, 5)
    assert row["gradvar/after"] == pytest.approx(5 / 2 * 8)
    assert row["gradvar/after_noise_share"] == pytest.approx(20 / (5 * 3) / 5)
    assert math.isnan(diagnostics.gradient_variance("after", one * 0, 5)["gradvar/after_noise_share"])


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize(("groups", "decay"), [(8, 0.0), (16, 0.7)])
def test_the_share_of_noise_and_its_interval(groups: int, decay: float, ratio: float) -> None:
    """True noise over signal .1 to 100 in 300 dimensions, of equal variance or of variances that fall: mean and coverage."""
    rng = np.random.default_rng([groups, int(10 * ratio)])
    sd = (1 + np.arange(300.0)) ** -decay
    signal = rng.standard_normal(300) * sd
    signal *= np.sqrt((sd**2).sum() / groups / ratio) / np.linalg.norm(signal)
    rows = []
    for _ in range(200):
        means = torch.from_numpy(signal + sd * rng.standard_normal((groups, 300)))
        rows.append(list(diagnostics.gradient_variance("before", means, 1).values())[1:])
    share, low, high = np.array(rows).T
    true = ratio / (1 + ratio)
    assert np.mean((low <= true) & (true <= high)) > 0.91
    assert (low >= 0).all() and (low <= high).all() and (high <= 1).all()
    if not decay:
        assert np.mean(share) == pytest.approx(true, rel=0.02)
    if ratio == 0.1:
        assert np.mean(high - low) < 0.2


def test_a_sketch_keeps_norms_and_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gradients with more entries than a sketch: the interval is close to that of the whole gradients, the estimate equal."""
    noise = torch.Generator().manual_seed(1)
    means = 0.05 + torch.randn((8, 40_000), generator=noise)
    whole = diagnostics.gradient_variance("before", means, 1)
    monkeypatch.setattr(diagnostics, "SKETCH", 4096)
    part = diagnostics.gradient_variance("before", means, 1)
    assert part["gradvar/before_noise_share"] == whole["gradvar/before_noise_share"]
    for end in ("low", "high"):
        key = f"gradvar/before_noise_share_{end}"
        assert part[key] == pytest.approx(whole[key], abs=0.1)
    assert part["gradvar/before_noise_share_low"] != whole["gradvar/before_noise_share_low"]


def test_groups_of_single_correlated_samples_understate_the_variance() -> None:
    """AR(1) with phi = .9 along each of 16 environments: n Var(mean) = s^2 (1+phi)/(1-phi), 19 times Var of a sample."""
    phi, num_envs, num_steps = 0.9, 16, 400
    rng = np.random.default_rng(0)
    x = np.empty((num_steps, 60, num_envs))
    x[0] = rng.standard_normal((60, num_envs)) / math.sqrt(1 - phi**2)
    for t in range(1, num_steps):
        x[t] = phi * x[t - 1] + rng.standard_normal((60, num_envs))
    sample_variance = 1 / (1 - phi**2)
    groups = disjoint_groups(num_steps, num_envs)
    assert groups.shape == (num_envs, num_steps)
    by_environment, by_sample = [], []
    for r in range(60):
        flat = torch.from_numpy(x[:, r].reshape(-1, 1))
        by_environment.append(diagnostics.gradient_variance("before", flat[groups].mean(1), num_steps)["gradvar/before"])
        if r < 12:  # it has 6,400 groups
            by_sample.append(diagnostics.gradient_variance("before", flat, 1)["gradvar/before"])
    assert np.mean(by_environment) == pytest.approx(sample_variance * (1 + phi) / (1 - phi), rel=0.1)
    assert np.mean(by_sample) == pytest.approx(sample_variance, rel=0.05)
    assert np.mean(by_environment) > 15 * np.mean(by_sample)


@pytest.mark.parametrize(
    ("num_steps", "num_envs", "groups", "size"),
    [(5, 8, 8, 5), (5, 32, 32, 5), (5, 33, 16, 10), (2048, 1, 16, 128), (128, 4, 16, 32), (100, 3, 18, 16), (1, 1000, 31, 32)],
)
def test_groups_are_disjoint_and_whole_environments_where_possible(num_steps: int, num_envs: int, groups: int, size: int) -> None:
    index = disjoint_groups(num_steps, num_envs)
    assert index.shape == (groups, size)
    assert len(np.unique(index)) == index.size <= num_steps * num_envs
    environments = [set(row % num_envs) for row in index]  # time-major samples
    if num_envs >= 8:
        assert not any(a & b for i, a in enumerate(environments) for b in environments[:i])
    else:
        assert all(len(e) == 1 for e in environments)
        assert all((np.diff(row) == num_envs).all() for row in index)


def test_group_gradients_are_those_of_the_surrogate_without_its_penalty(make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch, groups = make_batch(policy, 64), disjoint_groups(8, 8)
    nudge(policy)
    found = torch.stack(list(group_gradients(policy, batch, objective(load_gate("sigmoid")), groups)))
    assert found.shape == (8, policy.num_actor_parameters)
    flat = policy.flat.clone().requires_grad_()
    logp = policy.distribution(flat, batch.view.observation).log_prob(batch.view.action)
    ratio = (logp - batch.samples.logp_old).exp()
    loss = -torch.sigmoid(10 * (ratio - 1)) * batch.samples.advantage
    for group, gradient in zip(groups, found, strict=True):
        (expected,) = torch.autograd.grad(loss[torch.from_numpy(group)].mean(), flat, retain_graph=True)
        torch.testing.assert_close(gradient, expected[: policy.num_actor_parameters], rtol=1e-4, atol=1e-6)


# columns


def test_update_statistics_are_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    d, a = 0.3 * torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    gate = gates.Sigmoid(sharpness=4.0)
    row = diagnostics.update_statistics(shift(d), gate, samples(a))
    r, z = np.exp(d.double().numpy()), d.double().numpy()
    w = r / np.cosh(2 * (r - 1)) ** 2
    g = 1 / (1 + np.exp(-4 * (r - 1)))
    pos = a.numpy() >= 0
    expected = {
        "kl/old_exact": 0.01,
        "kl/old_k1": -z.mean(),
        "kl/old_k1_se": z.std(ddof=1) / 1000**0.5,
        "kl/old_k2": (z**2 / 2).mean(),
        "kl/old_k2_se": (z**2 / 2).std(ddof=1) / np.sqrt(1000),
        "kl/old_k3": (r - 1 - z).mean(),
        "kl/old_k3_se": (r - 1 - z).std(ddof=1) / 1000**0.5,
        "policy/entropy": 1.4,
        "ratio/min": r.min(),
        "ratio/max": r.max(),
        "ratio/abs_log_max": np.abs(z).max(),
        "weight/at_one": 1.0,
        "weight/relative_mean": w.mean(),
        "ess/ratio": r.sum() ** 2 / (r**2).sum() / 1000,
        "ess/weight": w.sum() ** 2 / (w**2).sum() / 1000,
        "gate/sharpness": 4.0,
    }
    for side, chosen in (("pos", pos), ("neg", ~pos)):
        for name, x in (("gate", g[chosen]), ("weight", w[chosen])):
            expected[f"{name}/{side}_mean"] = x.mean()
            for key, level in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
                expected[f"{name}/{side}_{key}"] = np.quantile(x, level)
    assert row.pop("ratio/tail_index") > 1
    for curve, column in (
        ("kl_old_exact", "kl/old_exact"),
        ("weight_relative_mean", "weight/relative_mean"),
        ("ess_ratio", "ess/ratio"),
    ):
        assert row.pop(f"epoch/{curve}") == [row[column]]
    assert row == {key: pytest.approx(value, rel=1e-4) for key, value in expected.items()}
    assert set(row) <= set(schema.GLOSSARY)


def test_curves_over_epochs_divide_by_the_weight_at_one() -> None:
    """Two epochs with both signs of advantage, the second with nothing moved."""
    d, a = torch.linspace(-0.5, 0.5, 101), torch.linspace(1, -1, 101)
    for gate in (gates.Sigmoid(sharpness=10.0), gates.Sigmoid(sharpness=10.0, scale="unit")):
        rows = diagnostics.update_statistics(shift(d, d * 0, kl=[0.01, 0.02]), gate, samples(a))
        r = np.exp(d.double().numpy())
        assert rows["epoch/weight_relative_mean"] == pytest.approx([(r / np.cosh(5 * (r - 1)) ** 2).mean(), 1.0], rel=1e-4)
        assert rows["epoch/ess_ratio"] == pytest.approx([r.sum() ** 2 / (r**2).sum() / 101, 1.0], rel=1e-5)
        assert rows["epoch/kl_old_exact"] == pytest.approx([0.01, 0.02])
    still = diagnostics.update_statistics(shift(d * 0), gates.Open(), samples(a))  # w(1) = 0 divides nothing
    assert still["epoch/weight_relative_mean"] == [0]
    assert still["epoch/ess_ratio"] == pytest.approx([1.0])


def test_a_side_without_samples_is_nan_and_no_other() -> None:
    row = diagnostics.update_statistics(shift(torch.linspace(-1, 1, 50)), load_gate("clip"), samples(torch.ones(50)))
    assert {key for key, value in row.items() if np.isnan(value).any()} == {
        *(f"{name}/neg_{key}" for name in ("gate", "weight") for key in ("mean", "q05", "q50", "q95")),
        "gate/sharpness",
    }


@pytest.mark.parametrize("furthest", [30.0, 300.0, 400.0])
def test_statistics_of_a_policy_that_ran_away_are_numbers(furthest: float) -> None:
    d = torch.linspace(-1, 1, 100)
    d[0], d[1] = furthest, -furthest
    row = diagnostics.update_statistics(shift(d), load_gate("sigmoid"), samples(torch.ones(100).cumsum(0) - 50))
    assert row["ess/ratio"] == pytest.approx(0.01)  # one sample has all the weight
    assert row["epoch/ess_ratio"] == [row["ess/ratio"]]
    assert not np.isnan(np.hstack(list(row.values()))).any()


# one iteration of learning


def rollout_of(policy: ActorCritic, num_steps: int, num_envs: int) -> ControlRollout:
    rng = np.random.default_rng(0)
    observation = rng.standard_normal((num_steps, num_envs, policy.observation_size)).astype(np.float32)
    noise = policy.draw_noise((num_steps * num_envs,), rng)
    action = policy.act(observation.reshape(-1, policy.observation_size), noise).reshape(num_steps, num_envs, -1)
    reward, value = rng.standard_normal((2, num_steps, num_envs))
    ended = np.zeros((num_steps, num_envs), bool)
    steps = {"reward": reward, "terminated": ended, "done": ended, "value": value, "next_value": value, "metrics": {}}
    return ControlRollout(observation=observation, action=action, **steps)


def test_learn_reports_known_columns_and_lets_penalty_and_gate_observe(make_policy: Make) -> None:
    policy = make_policy()
    bounds = {"factor": 2.0, "tolerance": 1.5, "min_coef": 1e-3, "max_coef": 1e3}
    penalty = AdaptivePenalty(coef=1.0, estimator="exact", anchor="old", kl_target=1e-6, **bounds)
    learner = algorithm(penalty=penalty, update=sgd(num_epochs=3, num_minibatches=2))
    learner.setup(policy, 1, 0)
    metrics = learner.learn(policy, rollout_of(policy, 8, 8), measure_variance=True)
    assert set(metrics) <= set(schema.GLOSSARY)
    assert metrics["gradvar/num_groups"] == 8
    assert metrics["gradvar/before"] > 0
    assert len(metrics["epoch/kl_old_exact"]) == 3
    assert metrics["epoch/kl_old_exact"][-1] == metrics["kl/old_exact"] > 1.5e-6
    assert metrics["kl/coef"] == 1.0
    assert learner.state_dict()["penalty"] == {"coef": 2.0}
    assert "gradvar/before" not in learner.learn(policy, rollout_of(policy, 8, 8), measure_variance=False)


def test_advantages_that_must_not_be_centered_are_not_centered_by_the_diagnostics(make_policy: Make) -> None:
    """AWR's weights exp(A/beta) are positive, so the gate never sees A < 0, nor may the gradient's variance."""
    policy = make_policy()
    advantage = Exponential(gae=gae(normalize="none"), beta=1.0, max_weight=20.0)
    learner = algorithm(gate=gates.Log(), advantage=advantage, update=sgd(num_epochs=1, num_minibatches=2))
    learner.setup(policy, 1, 0)
    metrics = learner.learn(policy, rollout_of(policy, 8, 8), measure_variance=False)
    assert math.isnan(metrics["weight/neg_mean"])
    assert metrics["weight/pos_mean"] == 1


def test_the_measured_variance_is_of_the_gate_alone(make_policy: Make) -> None:
    """A penalty changes the steps, not what is measured before the first one."""
    rows = []
    for penalty in (NoPenalty(), FixedPenalty(coef=5.0, estimator="exact", anchor="old")):
        policy = make_policy()
        learner = algorithm(penalty=penalty, update=sgd(num_epochs=2, num_minibatches=2, lr=1e-2))
        learner.setup(policy, 1, 0)
        rows.append(learner.learn(policy, rollout_of(policy, 8, 8), measure_variance=True))
    assert rows[0]["gradvar/before"] == rows[1]["gradvar/before"]
    assert rows[0]["gradvar/after"] != rows[1]["gradvar/after"]
    assert rows[1]["kl/old_exact"] < rows[0]["kl/old_exact"]
