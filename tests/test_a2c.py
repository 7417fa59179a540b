"""A2C: loss and gradient in closed form, RMSprop as torch has it, Stable-Baselines3's settings, and that it learns CartPole."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rgpo.cli.config import build, compose_jobs
from rgpo.control.a2c import A2C, a2c_loss, policy_gradient, rmsprop
from rgpo.control.actor_critic import ActorCritic
from rgpo.control.policy import ControlBatch, ControlRollout
from rgpo.core.advantages import GAE
from rgpo.errors import ConfigError, NonFiniteError
from rgpo.learning.gradients import group_gradients
from rgpo.learning.types import Requirements

Make = Callable[..., ActorCritic]
MakeBatch = Callable[..., ControlBatch]
both_kinds = pytest.mark.parametrize("discrete", [False, True], ids=["gaussian", "categorical"])


def make(normalize: str = "none", **change: Any) -> A2C:
    advantage = GAE(gamma=0.9, lam=1.0, bootstrap_truncated=True, normalize=normalize)
    knobs: dict[str, Any] = {"lr": 7e-4, "anneal_lr": False, "rms_alpha": 0.99, "rms_eps": 1e-5, "max_grad_norm": 0.5}
    return A2C(advantage=advantage, **knobs | {"vf_coef": 0.5, "ent_coef": 0.01} | change)


def roll(policy: ActorCritic, seed: int, num_steps: int = 5, num_envs: int = 8) -> ControlRollout:
    """Random observations, rewards and ends; the policy's own actions and values."""
    rng = np.random.default_rng(seed)
    shape = num_steps, num_envs
    observation = rng.standard_normal((num_steps + 1, num_envs, policy.observation_size)).astype(np.float32)
    action = policy.act(observation[:-1].reshape(-1, policy.observation_size), policy.draw_noise((num_steps * num_envs,), rng))
    value = policy.values(observation.reshape(-1, policy.observation_size)).astype(np.float64).reshape(num_steps + 1, num_envs)
    ended = rng.random(shape) < 0.1
    return ControlRollout(
        observation=observation[:-1],
        action=action.reshape(*shape, *action.shape[1:]),
        reward=rng.standard_normal(shape),
        terminated=ended,
        done=ended,
        value=value[:-1],
        next_value=value[1:],
        metrics={},
    )


def loss_and_gradient(policy: ActorCritic, batch: ControlBatch, **coefs: float) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient shaped as the policy's tensors."""
    flat = policy.flat.clone().requires_grad_()
    loss, _ = a2c_loss(policy.forward(batch.view, flat=flat), batch.samples, **coefs)
    return loss.detach(), policy.unflatten(torch.autograd.grad(loss, flat)[0])


def test_the_gradient_by_the_last_layers_is_the_closed_form(make_policy: Make, make_batch: MakeBatch) -> None:
    """p = softmax(z): d(-A log p_a)/dz = A (p - onehot_a), d(-H)/dz = p (log p + H), d(V - R)^2/dV = 2 (V - R)."""
    policy = make_policy(discrete=True)
    batch = make_batch(policy, 32)
    samples, count = batch.samples, 32
    z = torch.from_numpy(policy.mode_output(batch.view.observation.numpy()))
    log_p = torch.log_softmax(z, -1)
    p, onehot = log_p.exp(), torch.nn.functional.one_hot(batch.view.action, 3)
    entropy = -(p * log_p).sum(-1, keepdim=True)
    by_logits = (samples.advantage[:, None] * (p - onehot) + 0.03 * p * (log_p + entropy)) / count
    by_value = 0.7 * 2 * (torch.from_numpy(policy.values(batch.view.observation.numpy())) - samples.value_target) / count
    loss, gradient = loss_and_gradient(policy, batch, vf_coef=0.7, ent_coef=0.03)
    torch.testing.assert_close(gradient[len(policy.actor_shapes) - 1], by_logits.sum(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient[-1], by_value.sum()[None], rtol=1e-4, atol=1e-6)
    error = (torch.from_numpy(policy.values(batch.view.observation.numpy())) - samples.value_target).square().mean()
    logp = log_p.gather(-1, batch.view.action[:, None])[:, 0]
    expected = -(samples.advantage * logp).mean() + 0.7 * error - 0.03 * entropy.mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


@both_kinds
def test_the_gradient_is_a_central_difference_of_the_loss(discrete: bool, make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy(discrete=discrete)
    batch = make_batch(policy, 64)
    _, parts = loss_and_gradient(policy, batch, vf_coef=0.5, ent_coef=0.1)
    gradient, start = torch.cat([x.flatten() for x in parts]), policy.flat.clone()
    direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    losses = []
    for step in (1e-3, -1e-3):
        policy.flat.copy_(start + step * direction)
        losses.append(loss_and_gradient(policy, batch, vf_coef=0.5, ent_coef=0.1)[0].double().item())
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(gradient.dot(direction).item(), rel=1e-2)


@both_kinds
def test_the_gradient_whose_variance_is_measured_is_that_of_the_first_term(
    discrete: bool, make_policy: Make, make_batch: MakeBatch
) -> None:
    policy = make_policy(discrete=discrete)
    batch = make_batch(policy, 24)
    _, parts = loss_and_gradient(policy, batch, vf_coef=0.0, ent_coef=0.0)
    whole = torch.cat([x.flatten() for x in parts])[: policy.num_actor_parameters]
    (found,) = group_gradients(policy, batch, policy_gradient, np.arange(24)[None])
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)


def test_a_step_of_rmsprop_by_hand() -> None:
    """v = 0.9 * 4 + 0.1 * 9, theta = 1 - 0.5 * 3/(sqrt v + 0.1)."""
    theta, square = rmsprop(torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([3.0]), lr=0.5, alpha=0.9, eps=0.1)
    assert square.item() == pytest.approx(4.5) and theta.item() == pytest.approx(1 - 1.5 / (math.sqrt(4.5) + 0.1))


@pytest.mark.parametrize("normalize", ["none", "batch"])
@both_kinds
def test_steps_are_those_of_torchs_rmsprop(discrete: bool, normalize: str, make_policy: Make) -> None:
    """Three iterations with clipping and an annealed rate, against torch.optim.RMSprop and clip_grad_norm_."""
    policy, twin = (make_policy(discrete=discrete) for _ in range(2))
    algorithm = make(normalize, lr=1e-2, anneal_lr=True, max_grad_norm=0.3)
    algorithm.setup(policy, 4, 0)
    leaf = twin.flat.clone().requires_grad_()
    optimizer = torch.optim.RMSprop([leaf], alpha=0.99, eps=1e-5)
    norms = []
    for i in range(3):
        rollout = roll(policy, seed=i)
        advantage, target = algorithm.advantage(rollout)
        metrics = algorithm.learn(policy, rollout, False)
        if normalize == "batch":
            advantage = (advantage - advantage.mean()) / advantage.std(ddof=1)
        batch = twin.make_batch(rollout, advantage, target)
        out, samples = twin.forward(batch.view, flat=leaf), batch.samples
        optimizer.zero_grad()
        assert out.value is not None and out.entropy is not None
        errors = torch.nn.functional.mse_loss(out.value, samples.value_target)
        (-(samples.advantage * out.logp).mean() + 0.5 * errors - 0.01 * out.entropy.mean()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_([leaf], 0.3).item())
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / 4)
        optimizer.step()
        twin.flat.copy_(leaf.detach())
        assert metrics["grad/norm_mean"] == pytest.approx(norms[-1], rel=1e-4)
        assert metrics["grad/clip_fraction"] == float(norms[-1] > 0.3)
        assert metrics["a2c/value_loss"] == pytest.approx(errors.item(), rel=1e-4)
        assert metrics["a2c/entropy"] == pytest.approx(out.entropy.mean().item(), rel=1e-4)
    torch.testing.assert_close(policy.flat, leaf.detach(), rtol=1e-4, atol=1e-5)
    assert max(norms) > 0.3 and metrics["kl/old_exact"] > 0


def test_returns_of_n_steps_are_the_targets(make_policy: Make) -> None:
    """r_0 + g r_1 + g^2 r_2 + g^3 V(s_3), and after an end no value: the advantage estimator of conf/algo/a2c.yaml."""
    config = compose_jobs(["algo=a2c"], False, None)[0].config
    _, algorithm = build(config)
    assert isinstance(algorithm, A2C) and algorithm.advantage.gamma == 0.99 and algorithm.advantage.normalize == "none"
    rollout = roll(make_policy(), seed=0, num_steps=3, num_envs=2)
    rollout.terminated[:] = rollout.done[:] = [[False, False], [False, True], [False, False]]
    _, target = algorithm.advantage(rollout)
    r, v = rollout.reward, rollout.next_value
    assert target[0, 0] == pytest.approx(r[0, 0] + 0.99 * r[1, 0] + 0.99**2 * r[2, 0] + 0.99**3 * v[2, 0])
    assert target[0, 1] == pytest.approx(r[0, 1] + 0.99 * r[1, 1])
    assert target[2, 1] == pytest.approx(r[2, 1] + 0.99 * v[2, 1])


def test_the_settings_are_stable_baselines3s() -> None:
    """A2C("MlpPolicy", ...) of Stable-Baselines3 2.9, with 8 environments."""
    config: dict[str, Any] = compose_jobs(["algo=a2c", "task=pendulum"], False, None)[0].config
    expected = {"lr": 7e-4, "rms_alpha": 0.99, "rms_eps": 1e-5, "max_grad_norm": 0.5, "vf_coef": 0.5, "ent_coef": 0.0}
    expected |= {"_target_": "rgpo.control.a2c.A2C", "anneal_lr": False}
    assert config["algorithm"] == expected
    assert (config["task"]["num_steps"], config["task"]["num_envs"]) == (5, 8)
    assert [config.get(key) for key in ("gate", "ref_gate", "gate_combination", "penalty", "update")] == [None] * 5


def test_it_learns_cartpole() -> None:
    """A random policy balances for about 22 steps."""
    words = ["algo=a2c", "task=cartpole", "algorithm.lr=2e-3"]
    config = compose_jobs(words, False, None)[0].config
    task, algorithm = build(config)
    task.setup(1, algorithm.requirements)
    policy = task.make_policy(2)
    num_iterations = task.plan_iterations(10_000)
    algorithm.setup(policy, num_iterations, 3)
    returns: list[float] = []
    for _ in range(num_iterations):
        rollout = task.collect(policy)
        algorithm.learn(policy, rollout, False)
        returns += [rollout.metrics["return/train_mean"]] if "return/train_mean" in rollout.metrics else []
    assert np.mean(returns[:5]) < 50 and np.mean(returns[-10:]) > 100, (returns[:5], returns[-10:])


def test_the_rollouts_gradient_variance_is_logged_on_request(make_policy: Make) -> None:
    policy, algorithm = make_policy(), make(lr=1e-9)
    algorithm.setup(policy, 4, 0)
    metrics = algorithm.learn(policy, roll(policy, 0), True)
    assert metrics["gradvar/num_groups"] == 8 and metrics["gradvar/before"] > 0
    assert metrics["gradvar/after"] == pytest.approx(metrics["gradvar/before"], rel=1e-3)
    assert not any(name.startswith("gradvar/") for name in algorithm.learn(policy, roll(policy, 1), False))


def test_a_gradient_that_is_not_finite_stops_before_the_step(make_policy: Make) -> None:
    policy, algorithm = make_policy(), make()
    algorithm.setup(policy, 4, 0)
    rollout, before = roll(policy, 0), policy.flat.clone()
    rollout.reward[1, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"reward is NaN or infinite; check the task's rewards"):
        algorithm.learn(policy, rollout, False)
    assert torch.equal(policy.flat, before) and not algorithm.square.any()


def test_what_cannot_run_is_refused() -> None:
    for knob, value in (("lr", 0), ("rms_alpha", 1.5), ("rms_eps", 0), ("vf_coef", -1), ("ent_coef", -1), ("max_grad_norm", 0)):
        with pytest.raises(ConfigError, match=rf"algorithm\.{knob}={value}: must"):
            make(**{knob: value})
    with pytest.raises(ConfigError, match=r"advantage\.normalize=batch: cannot standardize a rollout of one sample"):
        make("batch").validate(1)
    make("none").validate(1)
    assert make().requirements == Requirements(gamma=0.9, critic=True, num_minibatches=1)


def test_a_policy_that_is_a_module_is_refused() -> None:
    policy: Any = SimpleNamespace(flat=None)
    with pytest.raises(ConfigError, match="algo=a2c: trains actor-critics of control tasks"):
        make().setup(policy, 4, 0)
