"""Adam and the parts of the loss against torch.optim and what is published."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from gate_options import load_gate
from torch import nn
from update_parts import EXACT, K3, Make, MakeBatch, both_kinds, noise, objective

from rgpo.learning.adam import AdamState, adam, bias_corrections, clip_by_norm
from rgpo.learning.loss import loss, policy_loss, standardize, value_loss
from rgpo.learning.samples import PolicyOutput, Samples


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("eps", [1e-8, 1e-5, 1e-1])
def test_adam_is_torchs(dtype: torch.dtype, tolerance: float, eps: float) -> None:
    start, target = noise(20, seed=1, dtype=dtype), noise(20, seed=2, dtype=dtype)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=1e-2, eps=eps)
    ours = AdamState.start(start)
    for i in range(50):
        lr = 1e-2 * (1 - i / 100)
        optimizer.param_groups[0]["lr"] = lr
        theirs.grad = (theirs.detach() - target) ** 3
        optimizer.step()
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
    far_loss = value_loss(far, torch.tensor([4.0]), torch.tensor([0.0]), 0.2)
    assert torch.autograd.grad(far_loss, far)[0] == 0


def test_standardize() -> None:
    x = 3 + 2 * noise(50)
    torch.testing.assert_close(standardize(x), (x - x.mean()) / (x.std() + 1e-8))


@both_kinds
def test_the_penalty_in_the_loss_is_the_exact_kl(make_policy: Make, make_batch: MakeBatch, discrete: bool) -> None:
    policy = make_policy(discrete=discrete)
    batch = make_batch(policy, 64)
    flat = (policy.flat + 0.1 * noise(len(policy.flat))).requires_grad_()
    out = policy.forward(batch.view, flat=flat, kl=True)
    loss_of = partial(policy_loss, out, batch.samples, objective=objective(load_gate("clip")))
    plain, penalized = loss_of()[0], loss_of(divergence=EXACT, kl_coef=0.7)[0]
    kl = policy.distribution(flat, batch.view.observation).kl_from(batch.view.old).mean()
    torch.testing.assert_close(penalized - plain, 0.7 * kl)
    difference = torch.autograd.grad(penalized - plain, flat, retain_graph=True)[0]
    torch.testing.assert_close(difference, 0.7 * torch.autograd.grad(kl, flat)[0], rtol=1e-4, atol=1e-6)


def test_the_penalty_against_a_reference_is_k3() -> None:
    """kl = pi_ref/pi - 1 - log pi_ref/pi of the samples, and the gate on the reference's ratio sees log pi/pi_ref."""
    logp = noise(30, dtype=torch.float64).requires_grad_()
    old, ref, advantage, zero = *noise(3, 30, seed=1, dtype=torch.float64), torch.zeros(30, dtype=torch.float64)
    samples = Samples(old, ref, advantage, zero, zero)
    loss_of = partial(policy_loss, PolicyOutput(logp, None, None, None), samples, objective=objective(load_gate("clip")))
    x = ref - logp
    k3 = (x.exp() - 1 - x).mean()
    plain, penalized = loss_of()[0], loss_of(divergence=K3, kl_coef=0.3)[0]
    torch.testing.assert_close(penalized - plain, 0.3 * k3)
    difference = torch.autograd.grad(penalized - plain, logp, retain_graph=True)[0]
    torch.testing.assert_close(difference, 0.3 * torch.autograd.grad(k3, logp)[0])


def test_weights_corrections_and_sequences_in_the_policy_loss() -> None:
    """Written out for two sequences of three and one tokens, GSPO's ratio and a sampler's correction."""
    logp, old, advantage = noise(3, 4, dtype=torch.float64)
    weight, correction = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([1.0, 0.5, 2.0, 1.5]).double()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    samples = Samples(old, None, advantage, old, old, weight, correction, mask)
    out = PolicyOutput(logp, None, None, None)
    found, seen = policy_loss(out, samples, objective=objective(load_gate("sigmoid", sharpness=3.0)))
    d = logp - old
    d = torch.stack([d[:3].mean()] * 3 + [d[3]])
    torch.testing.assert_close(seen, d)
    torch.testing.assert_close(found, -(weight * torch.sigmoid(3 * (d.exp() - 1)) * advantage * correction).sum())


def test_the_total_loss_is_the_sum_of_its_parts(make_policy: Make, make_batch: MakeBatch) -> None:
    policy = make_policy()
    batch = make_batch(policy, 64)
    batch = batch.with_advantage(standardize(batch.samples.advantage))
    settings = {"objective": objective(load_gate("clip")), "divergence": None, "kl_coef": 0.0}
    settings |= {"vf_coef": 0.5, "ent_coef": 0.01, "value_clip": 0.2}
    total, parts = loss(policy.forward(batch.view), batch.samples, **settings)
    entropy = policy.distribution(policy.flat, batch.view.observation).entropy().mean()
    torch.testing.assert_close(total, parts.policy + 0.5 * parts.value - 0.01 * entropy)
    torch.testing.assert_close(parts.policy, torch.tensor(0.0), atol=1e-6, rtol=0)  # r = 1 and standardized advantages
    assert parts.log_ratio_max < 1e-4
    without, parts = loss(policy.forward(batch.view, value=False), batch.samples, **settings)
    assert parts.value == 0
    torch.testing.assert_close(without, parts.policy - 0.01 * entropy)
