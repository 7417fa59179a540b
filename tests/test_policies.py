"""Distributions against torch's own, and an actor-critic whose numpy and torch sides agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from update_parts import Make, MakeBatch, both_kinds

from rgpo.control.actor_critic import ActorCritic
from rgpo.control.distributions import Categorical, Gaussian
from rgpo.control.mlp import MLP
from rgpo.control.policy import ControlRollout
from rgpo.core.divergences import k1
from rgpo.errors import ConfigError
from rgpo.learning.diagnostics import credit_statistics
from rgpo.runtime.runner import RATIO_MOVED


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gaussian_is_torchs() -> None:
    mean, log_std, other_mean, other_log_std, action = draw(5, 7, 3)
    ours, other = Gaussian(mean, log_std), Gaussian(other_mean, other_log_std)
    theirs, their_other = (
        torch.distributions.Independent(torch.distributions.Normal(x.mean, x.log_std.exp()), 1) for x in (ours, other)
    )
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), torch.distributions.kl_divergence(theirs, their_other))
    assert (ours.kl(ours) == 0).all()


def test_categorical_is_torchs() -> None:
    logits, other_logits = 2 * draw(2, 7, 4)
    action = torch.arange(7) % 4
    ours, other = Categorical((logits + 100).log_softmax(-1)), Categorical(other_logits.log_softmax(-1))
    theirs, their_other = (torch.distributions.Categorical(logits=x) for x in (logits, other_logits))
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), torch.distributions.kl_divergence(theirs, their_other))
    assert (ours.kl(ours) == 0).all()


def modules(policy: ActorCritic) -> tuple[nn.Sequential, nn.Sequential]:
    """The same networks as plain torch modules."""
    tensors = policy.unflatten(policy.flat)
    count = len(policy.actor_shapes) - (not policy.discrete)

    def network(parts: list[Tensor]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for weight, bias in zip(parts[::2], parts[1::2], strict=True):
            layer = nn.Linear(*weight.shape)
            layer.weight.data, layer.bias.data = weight.T.clone(), bias.clone()
            layers += [layer, nn.Tanh() if policy.mlp.activation == "tanh" else nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return network(tensors[:count]), network(tensors[len(policy.actor_shapes) :])


@both_kinds
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_acting_in_numpy_equals_the_torch_forward_and_plain_modules(make_policy: Make, discrete: bool, activation: str) -> None:
    policy = make_policy(discrete=discrete, activation=activation, hidden_sizes=(16, 8), log_std_init=-0.7)
    policy.flat += 0.1 * draw(len(policy.flat)).float()  # biases too
    observation = draw(9, policy.observation_size).float()
    actor, critic = modules(policy)
    first = policy.distribution(policy.flat, observation)[0]
    outputs = torch.from_numpy(policy.mode_output(observation.numpy())), actor(observation).detach()
    for output in outputs:
        torch.testing.assert_close(output.log_softmax(-1) if discrete else output, first)
    value = policy.value(policy.flat, observation)
    torch.testing.assert_close(value, critic(observation).detach()[:, 0])
    torch.testing.assert_close(torch.from_numpy(policy.values(observation.numpy())), value)
    quiet = np.zeros((9, policy.output_size), np.float32)
    mode = torch.from_numpy(policy.act(observation.numpy(), quiet))
    torch.testing.assert_close(mode, first.argmax(-1) if discrete else first)


def test_loading_is_seen_by_acting(make_policy: Make) -> None:
    policy, other = make_policy(seed=0), make_policy(seed=1, log_std_init=0.5)
    observation, noise = np.ones((2, 5), np.float32), np.ones((2, 3), np.float32)
    address = policy.flat.data_ptr()
    assert not np.allclose(policy.act(observation, noise), other.act(observation, noise))
    policy.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(policy.act(observation, noise), other.act(observation, noise))
    assert policy.flat.data_ptr() == address


def test_gaussian_actions_have_the_policys_mean_and_std(make_policy: Make) -> None:
    policy, n = make_policy(log_std_init=-0.5), 40_000
    observation = np.tile(np.linspace(-1, 1, 5, dtype=np.float32), (n, 1))
    action = policy.act(observation, policy.draw_noise((n,), np.random.default_rng(0)))
    assert action.dtype == np.float32
    assert action.shape == (n, 3)
    std = math.exp(-0.5)
    np.testing.assert_allclose(action.mean(0), policy.mode_output(observation[:1])[0], atol=4 * std / n**0.5)
    np.testing.assert_allclose(action.std(0), std, rtol=4 / (2 * n) ** 0.5)


def test_categorical_actions_have_the_policys_frequencies(make_policy: Make) -> None:
    policy, n = make_policy(discrete=True, action=4, policy_gain=2.0), 40_000
    observation = np.tile(np.linspace(-1, 1, 5, dtype=np.float32), (n, 1))
    action = policy.act(observation, policy.draw_noise((n,), np.random.default_rng(0)))
    assert action.dtype == np.int64
    probability = torch.softmax(torch.from_numpy(policy.mode_output(observation[:1])[0]), -1).numpy()
    assert probability.max() > 1.3 * probability.min()
    np.testing.assert_allclose(np.bincount(action, minlength=4) / n, probability, atol=4 * 0.5 / n**0.5)


@both_kinds
def test_orthogonal_initialization_has_its_gains(make_policy: Make, discrete: bool) -> None:
    policy = make_policy(discrete=discrete, hidden_sizes=(16, 8), policy_gain=0.01, value_gain=1.0, log_std_init=-1.5)
    tensors = policy.unflatten(policy.flat)
    weights = [t for t in tensors if t.dim() == 2]
    gains = [math.sqrt(2), math.sqrt(2), 0.01, math.sqrt(2), math.sqrt(2), 1.0]
    for weight, gain in zip(weights, gains, strict=True):
        small = weight if weight.shape[0] <= weight.shape[1] else weight.T
        torch.testing.assert_close(small @ small.T, gain**2 * torch.eye(len(small)), rtol=1e-4, atol=1e-6)
    vectors = [t for t in tensors if t.dim() == 1]
    log_std = [] if discrete else [vectors.pop(3)]
    assert all((v == 0).all() for v in vectors)
    assert all((v == -1.5).all() and v.shape == (3,) for v in log_std)
    assert torch.equal(make_policy(seed=3).flat, make_policy(seed=3).flat)
    assert not torch.equal(make_policy(seed=3).flat, make_policy(seed=4).flat)


def test_without_orthogonal_initialization_linear_layers_start_as_torchs_do(make_policy: Make) -> None:
    """nn.Linear draws weights and biases from U(-1/sqrt(in), 1/sqrt(in))."""
    policy = make_policy(orthogonal_init=False, hidden_sizes=(64, 64))
    tensors = policy.unflatten(policy.flat)
    layers = [*tensors[:6], *tensors[7:]]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        bound = weight.shape[0] ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
        assert 0 < bias.abs().max() <= bound


@both_kinds
@pytest.mark.parametrize("num_samples", [7, 64, 2048])
def test_the_new_policy_starts_as_the_old_one(make_policy: Make, make_batch: MakeBatch, discrete: bool, num_samples: int) -> None:
    policy = make_policy(discrete=discrete)
    batch = make_batch(policy, num_samples)
    view, samples = batch.view, batch.samples
    new = policy.distribution(policy.flat, view.observation)
    assert torch.equal(new.log_prob(view.action), samples.logp_old)  # as training reads it
    now = policy.measure_shift(batch)  # to the rounding of the pass that acts
    assert now.log_ratio.abs().max() < RATIO_MOVED
    assert now.kl.abs().max() < RATIO_MOVED
    assert all(x.shape[0] == num_samples for x in (*view[:2], *view.old, samples.logp_old, *samples[2:5]))
    assert view.action.dtype == (torch.int64 if discrete else torch.float32)


@both_kinds
def test_the_shift_is_the_ratio_and_the_kl_of_two_policies(make_policy: Make, make_batch: MakeBatch, discrete: bool) -> None:
    policy = make_policy(discrete=discrete)
    batch = make_batch(policy, 20_000)
    old = policy.distribution(policy.flat.clone(), batch.view.observation)
    policy.flat += 0.05 * draw(len(policy.flat)).float()
    new = policy.distribution(policy.flat, batch.view.observation)
    now = policy.measure_shift(batch)
    torch.testing.assert_close(now.log_ratio, new.log_prob(batch.view.action) - old.log_prob(batch.view.action))
    torch.testing.assert_close(now.entropy, new.entropy())
    error = (k1(now.log_ratio) - now.kl).std().item() / 20_000**0.5  # actions are samples of the old policy
    assert k1(now.log_ratio).mean().item() == pytest.approx(now.kl.mean().item(), abs=4 * error)
    assert now.kl.mean() > 4 * error


def test_make_batch_flattens_in_time_major_order(make_policy: Make) -> None:
    policy, (t, e) = make_policy(), (4, 3)
    rng = np.random.default_rng(0)
    observation = rng.standard_normal((t, e, 5)).astype(np.float32)
    action = policy.act(observation.reshape(-1, 5), policy.draw_noise((t * e,), rng)).reshape(t, e, 3)
    advantage, target, value = rng.standard_normal((3, t, e))
    ended = np.zeros((t, e), bool)
    steps = {"reward": value, "terminated": ended, "done": ended, "value": value, "next_value": value, "metrics": {}}
    rollout = ControlRollout(observation=observation, action=action, **steps)
    batch = policy.make_batch(rollout, advantage, target)
    for i in range(t):
        for j in range(e):
            assert batch.samples.advantage[i * e + j].item() == pytest.approx(advantage[i, j])
            assert batch.samples.value_target[i * e + j].item() == pytest.approx(target[i, j])
            np.testing.assert_array_equal(batch.view.observation[i * e + j].numpy(), observation[i, j])
            np.testing.assert_array_equal(batch.view.action[i * e + j].numpy(), action[i, j])
    metrics = credit_statistics(rollout, advantage, target, critic=True)
    assert metrics["value/explained_variance"] == pytest.approx(1 - np.var(target - value) / np.var(target))
    assert metrics["advantage/mean"] == pytest.approx(advantage.mean())
    assert metrics["advantage/std"] == pytest.approx(advantage.std())


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation", "gelu"), ("hidden_sizes", ()), ("hidden_sizes", (64, 0)), ("hidden_sizes", (64, 1.5))],
)
def test_bad_architectures_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^task\.policy\.{key}=.*: .{{10,}}\.$"):
        shape: dict[str, Any] = {"hidden_sizes": (64, 64), "activation": "tanh", "orthogonal_init": True}
        MLP(**(shape | {"policy_gain": 0.01, "value_gain": 1.0, "log_std_init": 0.0} | {key: value}))
