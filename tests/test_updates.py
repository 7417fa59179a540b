"""Minibatch Adam and SGD against PPO in plain torch modules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from update_parts import Make, MakeBatch, both_kinds, noise, objective

from rgpo.control.actor_critic import ActorCritic
from rgpo.core import gates
from rgpo.core.rollout import Batch
from rgpo.errors import ConfigError, NonFiniteError
from rgpo.learning.minibatch_adam import MinibatchAdam, resolve_compile
from rgpo.learning.natural_gradient import NaturalGradient
from rgpo.learning.sgd import SGD
from rgpo.learning.types import STATISTICS
from rgpo.runtime.runner import RATIO_MOVED

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
        statistics, measures = optimiser.climb(batch, 1e-3, 0.0, 1)
        assert statistics.shape == (1, num_minibatches, len(STATISTICS))
        assert measures == ()
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
    (table,), _ = update.optimiser.climb(make_batch(policy, 512), 1e-3, 0.0, 1)
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
    update = SGD(num_epochs=2, num_minibatches=4, lr=3e-4, ent_coef=0.01, value_clip=value_clip, anneal_lr=True, compile=False)
    update.setup(policy, objective(gates.Clip()), False, 4, 7)
    update.num_updates = 1  # a quarter of the run is over: lr has fallen by a quarter
    metrics, after = update(policy, batch, 0.0)

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
        new, _ = plain(batch.observation)
        torch.testing.assert_close(after.log_ratio[epoch], new.log_prob(batch.action) - batch.logp_old, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.entropy[epoch], new.entropy(), rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.parameters, plain.flat(), rtol=0, atol=1e-6)
    assert (policy.parameters - make_policy(discrete=discrete).parameters).abs().max() > 1e-3
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
    whole = update(policy, batch, 0.0)[0]["loss/policy"]
    expected = -batch.advantage.mean().item() if normalize == "none" else 0.0
    assert whole == pytest.approx(expected, abs=1e-5)
    first = update.optimiser.climb(batch, 1e-12, 0.0, 1)[0][0, :, 0]
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
    update(straight, batch, 0.0)
    saved, parameters = update.state_dict(), straight.parameters.clone()
    update(straight, batch, 0.0)
    resumed, other = fresh()
    resumed.load_state_dict(parameters)
    other.load_state_dict(saved)
    other(resumed, batch, 0.0)
    assert torch.equal(resumed.parameters, straight.parameters)


def test_sgd_stops_at_a_loss_that_is_not_finite(make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, 64)
    batch.advantage[3] = math.nan
    update = SGD(num_epochs=1, num_minibatches=4, compile=False)
    update.setup(policy, objective(gates.Clip()), False, 1, 0)
    with pytest.raises(NonFiniteError, match=r"by gradient step [1-4] of 4; lower update\.lr=0\.0003"):
        update(policy, batch, 0.0)


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


def test_compiling_is_resolved_and_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler is the one that inductor takes, CXX or g++; uncompiled runs need neither it nor a cache."""
    for name in ("g++", "clang++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    assert resolve_compile(False, 10**9) == (False, "not compiled (update.compile=false)")
    assert resolve_compile("auto", 10) == (False, "not compiled: 10 gradient steps are too few to pay for it")
    assert resolve_compile("auto", 10**9) == resolve_compile(True, 10) == (True, "compiled")
    (tmp_path / "g++").unlink()
    assert "no C++ compiler g++ found" in resolve_compile("auto", 10**9)[1]
    assert "no C++ compiler g++ found" in resolve_compile(True, 10)[1]
    monkeypatch.setenv("CXX", "clang++")
    assert resolve_compile("auto", 10**9) == (True, "compiled")
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "clang++"))
    assert "cannot write there" in resolve_compile("auto", 10**9)[1]
    assert resolve_compile(False, 10) == (False, "not compiled (update.compile=false)")
    with pytest.raises(ConfigError, match=r"RGPO_CACHE=.*cannot write there.*; set RGPO_CACHE"):
        resolve_compile(True, 10)
