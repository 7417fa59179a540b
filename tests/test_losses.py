"""Adam and the parts of the loss against torch.optim and what is published."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from update_parts import Make, MakeBatch, both_kinds, noise, objective

from rgpo.core import gates
from rgpo.learning.adam import AdamState, adam, bias_corrections, clip_by_norm
from rgpo.learning.loss import actor_critic_loss, policy_loss, standardise, value_loss
from rgpo.runtime.runner import RATIO_MOVED


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
