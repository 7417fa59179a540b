"""The language policy against plain log-softmax, explicit Fisher matrices, and itself cut into other pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import SAMPLING, batch_of, critic_settings, nudge, objective, roll, settings
from torch import Tensor

from rgpo.core import gates
from rgpo.core.divergences import k3
from rgpo.core.surrogate import sequence_mean, token_mean
from rgpo.errors import ConfigError
from rgpo.language.policy.generation import Completions
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.pretrained import load_causal_lm
from rgpo.language.policy.token_batch import clustered_mean, pack, rows_of, unpack
from rgpo.learning.natural_gradient import NaturalGradient

Make = Callable[..., LanguageModel]


def plain_logp(model: Any, completions: Completions, row: int) -> Tensor:
    """(t, V) log-probabilities that predict the row's completion, without padding and with the model's own logits."""
    live = completions.attention_mask_BS[row].bool()
    ids = completions.sequence_BS[row][live][None]
    length = int(completions.completion_mask_BT[row].sum())
    return torch.log_softmax(model(input_ids=ids).logits[0, -length - 1 : -1] / SAMPLING.temperature, -1)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_ratio_is_exactly_one_before_the_first_step(make_language_model: Make, lora: bool, ratio: str) -> None:
    policy = make_language_model(lora=lora, ratio=ratio)
    nudge(policy)  # away from the reference
    batch = batch_of(policy)
    adam = policy.adam(settings())
    for piece in (piece for pieces in batch.minibatches for piece in pieces):
        _, parts = adam.losses(piece, batch, batch.advantage, 0.0)
        assert parts[2] == 0
    now = policy.moved(batch)
    assert (now.log_ratio == 0).all() and (now.kl == 0).all()
    assert now.kl_ref is not None and now.kl_ref.mean() > 1e-3
    nudge(policy, 1e-2, seed=4)
    assert policy.moved(batch).log_ratio.abs().max() > 1e-4


@pytest.mark.parametrize("lora", [False, True])
def test_tokens_are_those_of_plain_logits_whatever_the_padding(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    base, _ = load_causal_lm(policy.backbone.config._name_or_path, dtype="float32", device="cpu")
    nudge(policy)
    rollout = roll(policy)
    logp, ref = (rows_of(x, rollout.completions) for x in (rollout.logp_old_N, rollout.logp_ref_N))
    kept = rollout.kept
    assert len(kept.tokens_M) == len(rollout.logp_old_N)
    first = 0
    for row in range(12):
        length = int(rollout.completions.completion_mask_BT[row].sum())
        targets = rollout.completions.sequence_BS[row, -rollout.completions.completion_mask_BT.shape[1] :][:length]
        for model, found, table in ((policy.model, logp, kept.logp_old_KV), (base, ref, kept.logp_ref_KV)):
            with torch.no_grad():
                expected = plain_logp(model, rollout.completions, row)
            torch.testing.assert_close(table[first : first + length], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[row, :length], expected.gather(1, targets[:, None])[:, 0], rtol=1e-4, atol=1e-5)
        first += length
    torch.testing.assert_close(
        policy.completion_kl(rollout.completions), (logp - ref).double().sum(1).numpy(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_how_a_minibatch_is_cut_changes_nothing(make_language_model: Make, reduction: str, ratio: str) -> None:
    """Loss and gradient of one minibatch in pieces of 1, 5 and 12 rows, and written out over whole tensors."""
    found = []
    for size in (1, 5, 12):
        policy = make_language_model(reduction=reduction, ratio=ratio, micro_batch_size=size)
        batch = batch_of(policy, num_minibatches=1)
        nudge(policy)
        assert len(batch.minibatches[0]) == -(-12 // size)
        total, adam = torch.zeros(()), policy.adam(settings())
        for piece in batch.minibatches[0]:
            loss, _ = adam.losses(piece, batch, batch.advantage, kl_coef=0.3)
            loss.backward()
            total += loss.detach()
        found.append((total, torch.cat([p.grad.flatten() for p in policy.with_critic()])))
    for loss, gradient in found[:2]:
        torch.testing.assert_close(loss, found[2][0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, found[2][1], rtol=1e-5, atol=1e-6)

    mask = batch.completions.completion_mask_BT.float()
    logp, entropy, value = (torch.zeros(mask.shape) for _ in range(3))
    for row in range(12):
        length = int(mask[row].sum())
        table = plain_logp(policy.model, batch.completions, row)
        target = batch.completions.sequence_BS[row, -mask.shape[1] :][:length]
        logp[row, :length] = table.gather(1, target[:, None])[:, 0]
        entropy[row, :length] = -(table.exp() * table).sum(1)
        hidden = policy.backbone(batch.completions.sequence_BS[row][batch.completions.attention_mask_BS[row].bool()][None])
        value[row, :length] = policy.values(hidden.last_hidden_state[0, -length - 1 : -1])
    old, ref, advantage, target_value = (
        rows_of(x, batch.completions) for x in (batch.logp_old, batch.logp_ref, batch.advantage, batch.value_target)
    )
    d = (logp - old) * mask
    if ratio == "sequence":
        d = (d.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(d)
    weight = {"token_mean": token_mean, "sequence_mean": sequence_mean}[reduction](mask)
    gate = gates.SigmoidSigned()
    policy_loss = (weight * (-gate(d, advantage) * advantage + 0.3 * k3(ref - logp))).sum()
    clipped = value.clamp(-0.2, 0.2)
    value_loss = (weight * torch.max((value - target_value) ** 2, (clipped - target_value) ** 2)).sum() / 2
    whole = policy_loss + 0.1 * value_loss - 0.01 * (weight * entropy).sum()
    torch.testing.assert_close(found[2][0], whole, rtol=1e-5, atol=1e-5)
    written_out = torch.autograd.grad(whole, policy.with_critic())
    torch.testing.assert_close(found[2][1], torch.cat([g.flatten() for g in written_out]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_adam_moves_the_policy_and_never_the_reference(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    adam = policy.adam(settings(num_minibatches=3, max_grad_norm=1.0, normalize=True))
    batch = batch_of(policy, num_minibatches=policy.num_minibatches)
    before = policy.state_dict()
    (rows,), after = adam.climb(batch, 1e-2, 0.0, 1)
    assert rows.shape == (3, 5)
    assert torch.equal(after[0][0], policy.moved(batch).log_ratio)
    assert rows[0, 2] == 0 < rows[1:, 2].min()  # r leaves 1 after the first step
    changed = [name for name, p in policy.state_dict().items() if not torch.equal(p, before[name])]
    assert set(changed) == set(before)
    again = policy.look_back(batch.completions, np.random.default_rng(9))
    torch.testing.assert_close(again["logp_ref_N"], batch.logp_ref, rtol=1e-5, atol=1e-5)
    assert (again["logp_old_N"] - batch.logp_old).abs().max() > 1e-3


def test_without_a_critic_there_is_no_value_head(make_language_model: Make) -> None:
    policy = make_language_model(critic=False)
    assert not any(name.startswith("value_head") for name in policy.state_dict())
    assert policy.adam(settings()).climb(batch_of(policy), 1e-3, 0.0, 1)[0][..., 1].max() >= 0
    assert torch.equal(policy.critic_adam(critic_settings()).climb(batch_of(policy), 1e-3, 0.0, 3)[0], torch.zeros(3, 2, 5))


def test_the_critic_learns_alone(make_language_model: Make) -> None:
    policy = make_language_model()
    fit, batch = policy.critic_adam(critic_settings()), batch_of(policy, num_minibatches=1)
    before = {name: p for name, p in policy.state_dict().items() if not name.startswith("value_head")}
    losses = fit.climb(batch, 1e-2, 0.0, 30)[0][..., 1].mean(-1)
    assert losses[-1] < 0.9 * losses[0]
    after = policy.state_dict()
    assert all(torch.equal(after[name], p) for name, p in before.items())


def test_fisher_products_are_those_of_the_explicit_matrix(make_language_model: Make) -> None:
    """F v = mean over kept tokens of J'(diag p - p p')J v."""
    policy = make_language_model(lora=True, critic=False, num_kl_tokens=15)
    nudge(policy)
    batch = batch_of(policy, num_minibatches=1)
    local = policy.local_model(batch, batch.advantage, objective(gates.Identity()))
    parameters = list(policy.trained().values())
    count = sum(p.numel() for p in parameters)
    v = torch.randn(count, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(count)
    for piece in batch.minibatches[0]:
        among = torch.isin(piece.tokens_n, batch.kept.tokens_M)
        logits = policy.head(policy.see(piece).hidden_nD[among]) / SAMPLING.temperature
        for row in logits:
            p = torch.softmax(row.detach(), -1)
            jacobian = torch.stack(
                [torch.cat([g.flatten() for g in torch.autograd.grad(z, parameters, retain_graph=True)]) for z in row[:280]]
            )
            image = jacobian @ v
            expected += jacobian.T @ (p * image - p * (p @ image)) / len(batch.kept.tokens_M)
    torch.testing.assert_close(local.fisher_product(v), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_natural_gradient_step_stays_in_its_trust_region_and_improves(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    update = NaturalGradient(kl_max=0.01, critic_epochs=1, critic_minibatches=2, compile=False)
    update.setup(policy, objective(gates.Identity()), False, 1, 0, "batch")
    batch = batch_of(policy, num_minibatches=policy.num_minibatches)
    metrics, _ = update(policy, batch, 0.0)
    assert metrics["trpo/line_search_success"] == 1
    now = policy.moved(batch)
    assert 0.002 < now.kl.mean() <= 0.01 + 1e-6
    advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()
    assert (now.log_ratio.exp() * advantage).mean() > 0


def test_group_gradients_average_to_the_whole_gradient(make_language_model: Make) -> None:
    """Groups of equal weight under sequence_mean: their mean is the gradient over all rows; the critic is left out."""
    policy = make_language_model(reduction="sequence_mean", micro_batch_size=3)
    rollout = roll(policy)
    groups = rollout.groups()
    assert groups.tolist() == [[2 * i, 2 * i + 1] for i in range(6)]
    batch, _ = policy.make_batch(rollout, rollout.reward, rollout.reward)
    table = torch.stack(list(policy.group_gradients(batch, batch.advantage, objective(gates.Log()), groups)))
    whole = next(policy.group_gradients(batch, batch.advantage, objective(gates.Log()), np.arange(12)[None]))
    torch.testing.assert_close(table.mean(0), whole, rtol=1e-4, atol=1e-6)
    assert len(whole) == sum(p.numel() for p in policy.trained().values())


def test_a_standard_error_of_whole_completions(make_language_model: Make) -> None:
    """Tokens of one completion agree here, so that the number of completions, not of tokens, decides."""
    policy = make_language_model()
    completions = roll(policy).completions
    lengths = completions.completion_mask_BT.sum(1)
    per_row = torch.randn(12, generator=torch.Generator().manual_seed(1))
    mean, se = clustered_mean(per_row.repeat_interleave(lengths), completions)
    share = lengths / lengths.sum()
    assert mean == pytest.approx((share * per_row).sum().item(), rel=1e-5)
    residual = (share * (per_row - mean)).square().sum() * 12 / 11
    assert se == pytest.approx(math.sqrt(residual), rel=1e-4)


def test_states_come_back_whole(make_language_model: Make) -> None:
    policy = make_language_model(lora=True)
    nudge(policy)
    rollout = roll(policy)
    other = make_language_model(lora=True)
    other.load_state_dict(policy.state_dict())
    again = unpack(pack(rollout))
    for name in ("reward", "done", "terminated", "value", "next_value", "mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rollout, name))
    batch, _ = other.make_batch(again, again.reward, again.reward)
    assert (other.moved(batch).log_ratio == 0).all()


def test_compiling_is_refused(make_language_model: Make) -> None:
    with pytest.raises(ConfigError, match=r"update\.compile=True: language models are not compiled"):
        make_language_model().adam(settings(compile=True))
