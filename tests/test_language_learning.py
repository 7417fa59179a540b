"""Learning of a language model: Adam, its value head, explicit Fisher matrices, and the gradients of groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gate_options import load_gate
from tiny_policies import batch_of, engine, make_sgd, nudge, plain_logp, roll
from torch import Tensor
from update_parts import K3, natural_gradient, objective, setup

from rgpo.core import gates
from rgpo.core.divergences import k3
from rgpo.core.sequence import sequence_log_ratio
from rgpo.core.surrogate import Detached, surrogate
from rgpo.language.policy.language_model import LanguageModel
from rgpo.learning.gradients import TrustRegionProblem, group_gradients
from rgpo.learning.loss import policy_loss

Make = Callable[..., LanguageModel]


@pytest.mark.parametrize("lora", [False, True])
def test_adam_moves_the_policy_and_never_the_reference(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    adam = engine(make_sgd(policy, num_minibatches=3, max_grad_norm=1.0, normalize="minibatch"))
    batch = batch_of(policy, num_minibatches=3)
    before = policy.state_dict()
    (rows,), shift = adam.run_epochs(batch, 1e-2, 0.0, 1)
    assert rows.shape == (3, 7)
    assert torch.equal(shift.log_ratio[0], policy.measure_shift(batch).log_ratio)
    assert rows[0, 2] == 0 < rows[1:, 2].min()  # r leaves 1 after the first step
    changed = [name for name, p in policy.state_dict().items() if not torch.equal(p, before[name])]
    assert set(changed) == set(before)
    again = policy.compute_old_logprobs(batch.completions, 3, np.random.default_rng(9))
    torch.testing.assert_close(again.logp_ref_N, batch.samples.logp_ref, rtol=1e-5, atol=1e-5)
    assert (again.logp_old_N - batch.samples.logp_old).abs().max() > 1e-3


def test_without_a_critic_there_is_no_value_head(make_language_model: Make) -> None:
    policy = make_language_model(critic=False)
    assert not any(name.startswith("value_head") for name in policy.state_dict())
    assert policy.critic is None
    statistics, _ = engine(make_sgd(policy)).run_epochs(batch_of(policy), 1e-3, 0.0, 1)
    assert statistics.shape == (1, 2, 7) and (statistics[..., 1] == 0).all()
    update, before = natural_gradient(), policy.state_dict()
    setup(update, policy, gates.Identity())
    assert update._fit_critic(policy, batch_of(policy)) == 0 and update.state_dict() == {}
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())


def test_the_critic_learns_alone(make_language_model: Make) -> None:
    policy = make_language_model()
    update, batch = natural_gradient(critic_epochs=1, critic_minibatches=2, critic_lr=1e-2), batch_of(policy, num_minibatches=1)
    setup(update, policy, gates.Identity(), iterations=30)
    before = policy.state_dict()
    losses = [update._fit_critic(policy, batch) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    after = policy.state_dict()
    changed = {name for name, p in before.items() if not torch.equal(after[name], p)}
    assert changed == {"value_head.weight", "value_head.bias"}


def test_the_value_head_is_one_vector_and_one_layer(make_language_model: Make) -> None:
    """Torch's optimizer writes through the layer and the critic's fit through the vector; each reads the other's values."""
    policy, other = make_language_model(lora=True), make_language_model(lora=True)
    batch = batch_of(policy, num_minibatches=1)
    (view,) = policy.subset(batch, np.arange(4)).minibatches()[0].views

    def assert_shared(policy: LanguageModel) -> None:
        head = policy.critic
        assert head is not None and policy.parameters()[-2:] == [*head.linear.parameters()]
        assert head.linear.weight.data_ptr() == head.flat.data_ptr()
        assert head.linear.bias.data_ptr() == head.flat[-1:].data_ptr()
        assert torch.equal(torch.cat([p.detach().flatten() for p in head.linear.parameters()]), head.flat)
        with torch.no_grad():
            value = policy.forward(view).value
        torch.testing.assert_close(value, head.value(head.flat, head.features(batch))[view.tokens_n], rtol=1e-5, atol=1e-5)

    assert policy.critic is not None and other.critic is not None
    assert_shared(policy)
    assert (policy.critic.flat == 0).all()
    engine(make_sgd(policy)).run_epochs(batch, 1e-2, 0.0, 2)
    assert_shared(policy)
    by_adam = policy.critic.flat.clone()
    assert (by_adam != 0).all()
    update = natural_gradient(critic_minibatches=2)
    setup(update, policy, gates.Identity())
    update._fit_critic(policy, batch)
    assert_shared(policy)
    assert (policy.critic.flat != by_adam).all()
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.critic.flat, policy.critic.flat)
    assert_shared(other)
    other.critic.flat.add_(1.0)
    assert_shared(other)
    assert torch.equal(policy.state_dict()["value_head.weight"], policy.critic.flat[None, :-1])  # a copy was loaded


def test_fisher_products_are_those_of_the_explicit_matrix(make_language_model: Make) -> None:
    """F v = mean over stored tokens of J'(diag p - p p')J v, with J that of the model's own logits."""
    policy = make_language_model(lora=True, critic=False, num_kl_tokens=15)
    nudge(policy)
    batch = batch_of(policy, num_minibatches=1)
    problem = TrustRegionProblem(policy, batch, objective(gates.Identity()))
    parameters = policy.parameters()
    v = torch.randn(policy.num_actor_parameters, generator=torch.Generator().manual_seed(0))
    expected, first = torch.zeros(len(v)), 0
    for row in range(12):
        table = plain_logp(policy.model, batch.completions, row)
        at = batch.stored.tokens_M[(batch.stored.tokens_M >= first) & (batch.stored.tokens_M < first + len(table))] - first
        first += len(table)
        for logp in table[at]:
            p = logp.detach().exp()
            eye = torch.eye(len(p))
            rows = torch.autograd.grad(logp, parameters, eye, retain_graph=True, is_grads_batched=True)
            jacobian = torch.cat([x.flatten(1) for x in rows], 1)
            image = jacobian @ v
            expected += jacobian.T @ (p * image - p * (p @ image)) / 15
    torch.testing.assert_close(problem.fisher_product(v), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_natural_gradient_step_stays_in_its_trust_region_and_improves(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    update = natural_gradient(kl_max=0.01, critic_epochs=1, critic_minibatches=2)
    setup(update, policy, gates.Identity(), normalize="batch")
    batch = batch_of(policy, num_minibatches=update.num_minibatches)
    metrics, after = update(policy, batch, 0.0)
    assert metrics["trpo/line_search_success"] == 1
    shift = policy.measure_shift(batch)
    assert torch.equal(after.kl[0], shift.kl)  # the critic's epochs leave the actor alone
    assert 0.002 < shift.kl.mean() <= 0.01 + 1e-6
    advantage = (batch.samples.advantage - batch.samples.advantage.mean()) / batch.samples.advantage.std()
    assert (shift.log_ratio.exp() * advantage).mean() > 0


def test_group_gradients_average_to_the_whole_gradient(make_language_model: Make) -> None:
    """Groups of equal weight under sequence_mean: their mean is the gradient over all rows; the critic is left out."""
    policy = make_language_model(reduction="sequence_mean", micro_batch_size=3)
    rollout = roll(policy)
    groups = rollout.groups()
    assert groups.tolist() == [[2 * i, 2 * i + 1] for i in range(6)]
    batch = policy.make_batch(rollout, rollout.reward, rollout.reward)
    table = torch.stack(list(group_gradients(policy, batch, objective(gates.Log()), groups)))
    whole = next(group_gradients(policy, batch, objective(gates.Log()), np.arange(12)[None]))
    torch.testing.assert_close(table.mean(0), whole, rtol=1e-4, atol=1e-6)
    assert len(whole) == sum(p.numel() for name, p in policy.named_parameters().items() if not name.startswith("value_head"))


@pytest.mark.parametrize("lora", [False, True])
def test_group_gradients_do_not_depend_on_what_an_optimizer_left(make_language_model: Make, lora: bool) -> None:
    """torch's Adam leaves the last minibatch's gradients in place; a policy with the same weights has none."""
    policy, fresh = make_language_model(lora=lora), make_language_model(lora=lora)
    batch = batch_of(policy)
    engine(make_sgd(policy)).run_epochs(batch, 1e-2, 0.0, 1)
    fresh.load_state_dict(policy.state_dict())
    assert all(p.grad is not None and p.grad.norm() > 0 for p in policy.parameters())
    assert all(p.grad is None for p in fresh.parameters())
    groups = np.arange(12).reshape(3, 4)
    for advantage in (batch.samples.advantage, 0 * batch.samples.advantage):
        left, clean = (
            torch.stack(list(group_gradients(each, batch.with_advantage(advantage), objective(gates.Log()), groups)))
            for each in (policy, fresh)
        )
        assert torch.equal(left, clean)
    assert (left == 0).all()  # no advantage, no gradient


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_reference_gate_sees_the_ratio_to_the_reference(make_language_model: Make, ratio: str) -> None:
    """d_ref = logp - logp_ref bit for bit, per token or as each completion's mean, whatever the ratio to the old policy."""
    policy = make_language_model(lora=True, ratio=ratio)
    nudge(policy)
    batch = batch_of(policy, num_minibatches=1)
    nudge(policy, seed=4)
    logp_old = batch.samples.logp_old
    far = logp_old - 100 * torch.rand(len(logp_old), generator=torch.Generator().manual_seed(0))  # so that d_old rounds
    batch = replace(batch, samples=batch.samples._replace(logp_old=far))
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    gate, ref_gate = load_gate("sigmoid"), load_gate("budget", budget=0.05)

    def spy(d_old: Tensor, d_ref: Tensor, advantage: Tensor, kl: Tensor, *, kl_coef: Tensor | float, **more: Any) -> Any:
        seen.append((d_old, d_ref, advantage, kl))
        return surrogate(d_old, d_ref, advantage, kl, gate=gate, ref_gate=ref_gate, combine=Detached(), kl_coef=kl_coef)

    for view in batch.minibatches()[0].views:
        out, samples = policy.forward(view), batch.at(view)
        loss, _ = policy_loss(out, samples, objective=spy, divergence=K3, kl_coef=0.3)
        d_old, d_ref, advantage, kl = seen.pop()
        expected = out.logp - samples.logp_old, out.logp - samples.logp_ref
        assert torch.equal(kl, k3(samples.logp_ref - out.logp))  # per token, whatever the gates see
        if ratio == "sequence":
            expected = tuple(sequence_log_ratio(d, view.live_bt) for d in expected)
        assert torch.equal(d_old, expected[0]) and torch.equal(d_ref, expected[1])
        assert (d_ref - d_old).abs().max() > 1e-2
        per_token = -gate(expected[0], advantage) * ref_gate(expected[1], advantage) * advantage + 0.3 * kl
        torch.testing.assert_close(loss, (samples.weight * per_token).sum())
        assert ref_gate(expected[1], advantage).std() > 1e-3  # it matters
