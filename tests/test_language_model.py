"""The language policy against plain log-softmax, losses written out, and itself in other micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gate_options import load_gate
from tiny_policies import batch_of, engine, make_sgd, nudge, plain_logp, roll

from rgpo.core.divergences import k3
from rgpo.core.sequence import REDUCTIONS
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.pretrained import load_causal_lm
from rgpo.language.policy.token_batch import clustered_mean, restore_rollout, rollout_state, to_rows

Make = Callable[..., LanguageModel]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_the_ratio_is_exactly_one_before_the_first_step(make_language_model: Make, lora: bool, ratio: str) -> None:
    policy = make_language_model(lora=lora, ratio=ratio)
    nudge(policy)  # away from the reference
    batch = batch_of(policy)
    adam = engine(make_sgd(policy))
    views = [view for minibatch in batch.minibatches() for view in minibatch.views]
    assert len(views) == 4
    for view in views:
        _, parts = adam.loss(policy.forward(view), batch.at(view), kl_coef=0.0)
        assert parts.log_ratio_max == 0
    shift = policy.measure_shift(batch)
    assert (shift.log_ratio == 0).all() and (shift.kl == 0).all()
    assert shift.kl_ref is not None and shift.kl_ref.mean() > 1e-3
    nudge(policy, 1e-2, seed=4)
    assert policy.measure_shift(batch).log_ratio.abs().max() > 1e-4


@pytest.mark.parametrize("lora", [False, True])
def test_tokens_are_those_of_plain_logits_whatever_the_padding(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    base, _ = load_causal_lm(policy.backbone.config._name_or_path, dtype="float32", device="cpu")
    nudge(policy)
    rollout = roll(policy)
    logp, ref = (to_rows(x, rollout.completions) for x in (rollout.old.logp_old_N, rollout.old.logp_ref_N))
    stored = rollout.old.stored
    assert len(stored.tokens_M) == len(rollout.old.logp_old_N)
    first = 0
    for row in range(12):
        length = int(rollout.completions.completion_mask_BT[row].sum())
        targets = rollout.completions.sequence_BS[row, -rollout.completions.completion_mask_BT.shape[1] :][:length]
        for model, found, table in ((policy.model, logp, stored.logp_old_KV), (base, ref, stored.logp_ref_KV)):
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
def test_the_size_of_micro_batches_changes_nothing(make_language_model: Make, reduction: str, ratio: str) -> None:
    """Loss and gradient of one minibatch in micro-batches of 1, 5 and 12 completions, and written out over whole tensors."""
    found = []
    for size in (1, 5, 12):
        policy = make_language_model(reduction=reduction, ratio=ratio, micro_batch_size=size)
        batch = batch_of(policy, num_minibatches=1)
        nudge(policy)
        (minibatch,) = batch.minibatches()
        assert len(minibatch.views) == -(-12 // size)
        assert minibatch.indices.sort().values.tolist() == list(range(len(batch.samples.logp_old)))
        total, adam = torch.zeros(()), engine(make_sgd(policy))
        for view in minibatch.views:
            loss, _ = adam.loss(policy.forward(view), batch.at(view), kl_coef=0.3)
            loss.backward()
            total += loss.detach()
        found.append((total, torch.cat([p.grad.flatten() for p in policy.parameters()])))
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
        value[row, :length] = policy.critic(hidden.last_hidden_state[0, -length - 1 : -1])
    samples = batch.samples
    old, ref, advantage, target_value = (
        to_rows(x, batch.completions) for x in (samples.logp_old, samples.logp_ref, samples.advantage, samples.value_target)
    )
    d = (logp - old) * mask
    if ratio == "sequence":
        d = (d.sum(1, keepdim=True) / mask.sum(1, keepdim=True)).expand_as(d)
    weight = REDUCTIONS[reduction](mask)
    gate = load_gate("sign_aware_sigmoid")
    policy_loss = (weight * (-gate(d, advantage) * advantage + 0.3 * k3(ref - logp))).sum()
    clipped = value.clamp(-0.2, 0.2)
    value_loss = (weight * torch.max((value - target_value) ** 2, (clipped - target_value) ** 2)).sum() / 2
    whole = policy_loss + 0.1 * value_loss - 0.01 * (weight * entropy).sum()
    torch.testing.assert_close(found[2][0], whole, rtol=1e-5, atol=1e-5)
    written_out = torch.autograd.grad(whole, policy.parameters())
    torch.testing.assert_close(found[2][1], torch.cat([g.flatten() for g in written_out]), rtol=1e-3, atol=1e-5)


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
    again = restore_rollout(rollout_state(rollout))
    for name in ("reward", "done", "terminated", "value", "next_value", "mask"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rollout, name))
    batch = other.make_batch(again, again.reward, again.reward)
    assert (other.measure_shift(batch).log_ratio == 0).all()
    expected = policy.make_batch(rollout, rollout.reward, rollout.reward)
    for x, y in zip(batch.samples, expected.samples, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
