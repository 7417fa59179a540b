"""Minibatch Adam and SGD against PPO in plain torch modules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate_options import load_gate
from torch import Tensor, nn
from update_parts import Make, MakeBatch, both_kinds, natural_gradient, noise, setup, sgd

from rgpo.control.actor_critic import ActorCritic
from rgpo.core import gates
from rgpo.errors import ConfigError, NonFiniteError
from rgpo.learning.accel.compiled_adam import resolve
from rgpo.learning.flat_adam import Data, FlatAdam, Statistics, select
from rgpo.learning.loss import LossParts
from rgpo.learning.sgd import SGD, nearest_divisor
from rgpo.runtime.runner import RATIO_MOVED

# minibatch Adam


@pytest.mark.parametrize("num_minibatches", [1, 3, 12])
def test_every_sample_is_visited_once_an_epoch(make_policy: Make, make_batch: MakeBatch, num_minibatches: int) -> None:
    batch = make_batch(make_policy(), 24).with_advantage(torch.arange(24.0))
    seen: list[list[float]] = []

    def loss(flat: Tensor, data: Data, kl_coef: Tensor) -> tuple[Tensor, LossParts]:
        seen.append(data[1].advantage.tolist())
        return flat.square().sum(), LossParts(*(flat.sum() * 0,) * 5)

    optimizer = FlatAdam(
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
        statistics, measures = optimizer.run_epochs((batch.view, batch.samples), 1e-3, 0.0, 1)
        assert statistics.shape == (1, num_minibatches, len(Statistics._fields))
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
    update = sgd(num_epochs=1, num_minibatches=8, lr=1e-3)
    setup(update, policy, load_gate("sigmoid"))
    (table,), _ = update._run_epochs(make_batch(policy, 512), 1e-3, 0.0)
    moved = table[:, Statistics._fields.index("log_ratio_max")]
    assert moved[0] == 0 if observation < 17 else moved[0] < RATIO_MOVED
    assert (moved[1:] > 10 * RATIO_MOVED).all()


# SGD against PPO in plain torch


class PlainPPO(nn.Module):
    """Actor and critic as torch modules, started at the flat parameters of an ActorCritic with two hidden layers."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        tensors = [t.clone() for t in policy.unflatten(policy.flat)]
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
    update = sgd(num_epochs=2, num_minibatches=4, ent_coef=0.01, value_clip=value_clip)
    setup(update, policy, load_gate("clip"), iterations=4, seed=7)
    update.num_updates = 1  # a quarter of the run is over: lr has fallen by a quarter
    metrics, after = update(policy, batch, 0.0)

    optimizer = torch.optim.Adam(plain.parameters(), lr=0.75 * 3e-4, eps=1e-5)
    rng, losses, norms = np.random.default_rng(7), [], []
    for epoch in range(2):
        for index in np.split(rng.permutation(64), 4):
            view, b = select((batch.view, batch.samples), torch.from_numpy(index))
            distribution, value = plain(view.observation)
            ratio = (distribution.log_prob(view.action) - b.logp_old).exp()
            a = (b.advantage - b.advantage.mean()) / (b.advantage.std() + 1e-8)
            policy_part = torch.max(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
            unclipped = (value - b.value_target) ** 2
            clipped = (b.value_old + (value - b.value_old).clamp(-0.2, 0.2) - b.value_target) ** 2
            value_part = 0.5 * (unclipped if value_clip is None else torch.max(unclipped, clipped)).mean()
            optimizer.zero_grad()
            (policy_part - 0.01 * distribution.entropy().mean() + 0.5 * value_part).backward()
            norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.5).item())
            optimizer.step()
            losses.append((policy_part.item(), value_part.item()))
        new, _ = plain(batch.view.observation)
        log_ratio = new.log_prob(batch.view.action) - batch.samples.logp_old
        torch.testing.assert_close(after.log_ratio[epoch], log_ratio, rtol=0, atol=1e-5)
        torch.testing.assert_close(after.entropy[epoch], new.entropy(), rtol=0, atol=1e-5)
    torch.testing.assert_close(policy.flat, plain.flat(), rtol=0, atol=1e-6)
    assert (policy.flat - make_policy(discrete=discrete).flat).abs().max() > 1e-3
    assert metrics["loss/policy"] == pytest.approx(np.mean(losses, 0)[0], abs=1e-5)
    assert metrics["loss/value"] == pytest.approx(np.mean(losses, 0)[1], rel=1e-4)
    assert metrics["grad/norm_mean"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert metrics["grad/norm_max"] == pytest.approx(max(norms), rel=1e-4)
    assert metrics["grad/clip_fraction"] == np.mean(np.array(norms) > 0.5)
    assert update.num_updates == 2


@pytest.mark.parametrize("normalize", ["minibatch", "none"])
def test_advantages_are_standardized_where_asked(make_policy: Make, make_batch: MakeBatch, normalize: str) -> None:
    """With constant parameters (lr tiny) the mean policy loss shows which advantages the gate saw."""
    policy = make_policy()
    batch = make_batch(policy, 64).with_advantage(5 + noise(64))
    update = sgd(num_epochs=1, num_minibatches=4, lr=1e-12)
    setup(update, policy, gates.Identity(), normalize=normalize)
    rng = np.random.default_rng(0)
    whole = update(policy, batch, 0.0)[0]["loss/policy"]
    expected = -batch.samples.advantage.mean().item() if normalize == "none" else 0.0
    assert whole == pytest.approx(expected, abs=1e-5)
    first = update._run_epochs(batch, 1e-12, 0.0)[0][0, :, 0]
    rng.permutation(64)
    chunks = [batch.samples.advantage[torch.from_numpy(i)] for i in np.split(rng.permutation(64), 4)]
    per_minibatch = [0.0] * 4 if normalize == "minibatch" else [-c.mean().item() for c in chunks]
    torch.testing.assert_close(first, torch.tensor(per_minibatch), rtol=1e-5, atol=1e-5)


def test_sgd_resumes_bit_for_bit(make_policy: Make, make_batch: MakeBatch) -> None:
    batch = make_batch(make_policy(), 64)

    def fresh() -> tuple[ActorCritic, SGD]:
        policy, update = make_policy(), sgd(num_epochs=2, num_minibatches=4)
        setup(update, policy, load_gate("sign_aware_sigmoid"), iterations=3)
        return policy, update

    straight, update = fresh()
    update(straight, batch, 0.0)
    saved, parameters = update.state_dict(), straight.state_dict()
    update(straight, batch, 0.0)
    resumed, other = fresh()
    resumed.load_state_dict(parameters)
    other.load_state_dict(saved)
    other(resumed, batch, 0.0)
    assert torch.equal(resumed.flat, straight.flat)


def test_sgd_stops_at_a_loss_that_is_not_finite(make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, 64)
    batch.samples.advantage[3] = math.nan
    update = sgd(num_epochs=1, num_minibatches=4)
    setup(update, policy, load_gate("clip"))
    with pytest.raises(NonFiniteError, match=r"at gradient step [1-4] of 4"):
        update(policy, batch, 0.0)


@pytest.mark.parametrize(
    ("make", "key", "value"),
    [
        (sgd, "num_epochs", 0),
        (sgd, "num_minibatches", 1.5),
        (sgd, "lr", 0.0),
        (sgd, "lr", math.nan),
        (sgd, "adam_eps", -1e-5),
        (sgd, "max_grad_norm", 0.0),
        (sgd, "value_clip", -0.2),
        (sgd, "vf_coef", -1.0),
        (sgd, "ent_coef", -0.1),
        (sgd, "compile", "maybe"),
        (natural_gradient, "compile", "maybe"),
        (natural_gradient, "kl_max", 0.0),
        (natural_gradient, "cg_damping", 0.0),
        (natural_gradient, "critic_lr", -1.0),
        (natural_gradient, "cg_iterations", 0),
        (natural_gradient, "line_search_tries", 2.5),
        (natural_gradient, "line_search_shrink", 1.0),
    ],
)
def test_bad_values_are_refused(make: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^update\.{key}={value}: .{{10,}}\.$"):
        make(**{key: value})


def test_minibatches_must_divide_the_batch() -> None:
    sgd(num_minibatches=32).validate(2048, "minibatch")
    natural_gradient(critic_minibatches=32).validate(2048, "batch")
    with pytest.raises(ConfigError, match=r"update\.num_minibatches=30: .* batch of 2048; 32 does"):
        sgd(num_minibatches=30).validate(2048, "minibatch")
    with pytest.raises(ConfigError, match=r"update\.num_minibatches=64: leaves 1 sample"):
        sgd(num_minibatches=64).validate(64, "minibatch")
    sgd(num_minibatches=64).validate(64, "batch")
    with pytest.raises(ConfigError, match=r"update\.critic_minibatches=30: does not divide"):
        natural_gradient(critic_minibatches=30).validate(2048, "batch")


@pytest.mark.parametrize(("number", "wanted", "nearest"), [(2048, 30, 32), (12, 5, 4), (7, 3, 1), (10**12, 3, 2), (36, 100, 36)])
def test_the_nearest_divisor(number: int, wanted: int, nearest: int) -> None:
    assert nearest_divisor(number, wanted) == nearest


def test_compiling_is_resolved_and_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler is the one that inductor takes, CXX or g++; uncompiled runs need neither it nor a cache."""
    for name in ("g++", "clang++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert resolve(False, 10**9) == (False, "not compiled (update.compile=false)")
    assert resolve("auto", 10) == (False, "not compiled: 10 gradient steps are too few to pay for it")
    pays = (True, "compiled: 1,000,000,000 gradient steps, which pays from 8,000 on")
    assert resolve("auto", 10**9) == pays and resolve(True, 10) == (True, "compiled")
    (tmp_path / "g++").unlink()
    assert "no C++ compiler g++ found" in resolve("auto", 10**9)[1]
    assert "no C++ compiler g++ found" in resolve(True, 10)[1]
    monkeypatch.setenv("CXX", "clang++")
    assert resolve("auto", 10**9) == pays
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "clang++"))
    assert "cannot write there" in resolve("auto", 10**9)[1]
    assert resolve(False, 10) == (False, "not compiled (update.compile=false)")
    with pytest.raises(ConfigError, match=r"RGPO_CACHE=.*cannot write there.*; set RGPO_CACHE"):
        resolve(True, 10)
