"""DPO's loss in closed form and as TRL computes it; exact gradients at any micro-batch size; and that it learns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_assets
from tiny_policies import PROMPTS, SAMPLING, nudge
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from rgpo.core.advantages import token_steps
from rgpo.errors import ConfigError, NonFiniteError
from rgpo.language.dpo import DPO, dpo
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.samplers import OfflinePairs
from rgpo.language.policy.token_batch import CompletionRollout, TokenBatch

Make = Callable[..., LanguageModel]
RECORD = json.loads((Path(__file__).parent / "fixtures" / "trl_dpo.json").read_text())
PAIRS = [  # index of the prompt, chosen, rejected: two pairs of one prompt, one answer without its end
    (0, [20, 21, 1], [22, 1]),
    (2, [23, 1], [24, 25, 26, 27, 1]),
    (1, [28, 29, 30, 1], [31, 1]),
    (0, [32, 1], [33, 34, 35, 36, 37, 38]),
    (3, [39, 1], [40, 41, 1]),
    (2, [42, 43, 1], [44, 1]),
]


def make(**change: Any) -> DPO:
    knobs: dict[str, Any] = {"beta": 0.3, "lr": 1e-2, "anneal_lr": False, "num_epochs": 1, "num_minibatches": 1}
    return DPO(**knobs | {"adam_eps": 1e-8, "max_grad_norm": None} | change)


def roll(policy: LanguageModel, pairs: Any = PAIRS, prompts: Any = PROMPTS) -> CompletionRollout:
    """The stored pairs as the task collects them; rewards are 0, since nothing reads them."""
    assets = make_assets(policy.model, None, prompts, pairs)
    completions = OfflinePairs().collect(policy, assets, range(len(pairs)), 2, torch.Generator())
    old = policy.compute_old_logprobs(completions, 1, np.random.default_rng(0))
    mask = completions.completion_mask_BT.numpy()
    steps = token_steps(np.zeros(mask.shape), np.zeros(mask.shape), mask, ~completions.finished_B.numpy())
    correction = torch.ones_like(old.logp_old_N)
    return CompletionRollout(**steps, metrics={}, group_size=2, completions=completions, old=old, correction_N=correction)


def batch_of(policy: LanguageModel, **change: Any) -> TokenBatch:
    rollout = roll(policy, **change)
    return policy.make_batch(rollout, rollout.reward, rollout.reward)


def gradient(policy: LanguageModel, batch: TokenBatch, pairs: list[int], **change: Any) -> Tensor:
    """Of the pairs' mean loss by all parameters, (P,)."""
    algorithm = make(**change)
    algorithm.setup(policy, 10, 0)
    (found,) = algorithm.gradients(policy, batch, np.array([pairs]))
    return found


def test_the_loss_of_two_pairs_by_hand() -> None:
    """Margins of 2 and -2 ln 3 nats at beta 1/2: losses log(1 + 1/e) and log(1 + 3)."""
    chosen, rejected = torch.tensor([1.5, 0.0]), torch.tensor([-0.5, 2 * math.log(3)])
    found = dpo(chosen, rejected, beta=0.5)
    assert found.loss.tolist() == pytest.approx([math.log(1 + math.exp(-1)), math.log(4)])
    assert found.reward_chosen.tolist() == pytest.approx([0.75, 0.0])
    assert found.reward_rejected.tolist() == pytest.approx([-0.25, math.log(3)])


def test_the_loss_of_a_hopeless_pair_is_finite_and_its_gradient_is_beta() -> None:
    """d loss/d d_chosen = -beta sigmoid(-margin) -> -beta; a naive log(sigmoid) would be infinite."""
    chosen = torch.tensor([-4000.0], requires_grad=True)
    loss = dpo(chosen, torch.tensor([4000.0]), beta=0.5).loss
    assert loss.item() == 4000.0
    assert torch.autograd.grad(loss.sum(), chosen)[0].item() == -0.5


def test_loss_and_gradient_are_trls() -> None:
    """From the model's parameters and token ids on: packing, log-probabilities, sums, loss and backward pass."""
    model = Qwen2ForCausalLM(Qwen2Config(**RECORD["model"]))
    load(model, RECORD["reference"])
    policy = LanguageModel(model, replace(SAMPLING, temperature=1.0, micro_batch_size=6), critic=False)
    load(policy.model, RECORD["policy"])
    prompts = [prompt for prompt, _, _ in RECORD["pairs"]]
    pairs = [(i, chosen, rejected) for i, (_, chosen, rejected) in enumerate(RECORD["pairs"])]
    batch = batch_of(policy, pairs=pairs, prompts=prompts)
    algorithm = make(beta=RECORD["pinned"]["beta"])
    algorithm.setup(policy, 10, 0)
    terms = algorithm.backward(policy, batch, np.arange(len(pairs)))
    assert terms.loss.mean().item() == pytest.approx(RECORD["loss"], abs=1e-6)
    for name, p in policy.model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, tensor(RECORD["gradient"][name]).float(), rtol=1e-5, atol=1e-6)
    logged, margin = RECORD["logged"], terms.reward_chosen - terms.reward_rejected
    assert (margin > 0).double().mean().item() == pytest.approx(logged["rewards/accuracies"])
    assert margin.mean().item() == pytest.approx(logged["rewards/margins"], abs=1e-6)
    assert terms.reward_chosen.mean().item() == pytest.approx(logged["rewards/chosen"], abs=1e-6)
    assert 0 < logged["rewards/accuracies"] < 1 and RECORD["versions"]["trl"] == "1.16.0"


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@torch.no_grad()
def load(model: Any, values: dict[str, Any]) -> None:
    for name, p in model.named_parameters():
        p.copy_(tensor(values[name]))


def test_the_loss_function_alone_is_trls() -> None:
    d = {side: tensor(RECORD["logp"][side]) - tensor(RECORD["logp"][f"ref_{side}"]) for side in ("chosen", "rejected")}
    beta = RECORD["pinned"]["beta"]
    assert dpo(d["chosen"], d["rejected"], beta=beta).loss.mean().item() == pytest.approx(RECORD["loss"], abs=1e-6)
    assert abs(dpo(d["rejected"], d["chosen"], beta=beta).loss.mean().item() - RECORD["loss"]) > 1e-2  # must-fail side


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_gradient_is_a_central_difference_of_the_loss(make_language_model: Make, attention: str) -> None:
    policy = make_language_model(lora=True, critic=False, attention=attention, micro_batch_size=8)
    policy.model.double()
    nudge(policy)
    batch, pairs = batch_of(policy), [0, 2, 3, 5]
    found = gradient(policy, batch, pairs)
    algorithm, parameters = make(), policy.parameters()
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        losses = []
        for step in (1e-3, -1e-3):  # Qwen2 normalizes in float32
            torch.nn.utils.vector_to_parameters(start + step * direction, parameters)
            with torch.no_grad():
                losses += [algorithm.evaluate(policy, batch, np.array(pairs)).loss.mean().item()]
        torch.nn.utils.vector_to_parameters(start, parameters)
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(found.dot(direction).item(), rel=1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_memory_is_bounded_and_the_gradient_does_not_depend_on_it(
    make_language_model: Make, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No forward pass holds more answers than task.micro_batch_size; 5 pairs are cut unevenly."""
    pairs, found = [4, 0, 3, 1, 5], {}
    for size in (2, 3, 5, 12):
        policy = make_language_model(lora=lora, critic=False, micro_batch_size=size)
        nudge(policy)
        batch = batch_of(policy)
        passes: list[int] = []
        forward = policy.forward
        monkeypatch.setattr(policy, "forward", lambda view, f=forward, p=passes, **k: p.append(len(view.live_bt)) or f(view, **k))
        found[size] = gradient(policy, batch, pairs)
        assert max(passes) <= size and sum(passes) == 2 * len(pairs) and len(passes) == -(-len(pairs) // (size // 2))
    for size in (2, 3, 5):
        torch.testing.assert_close(found[size], found[12], rtol=1e-4, atol=1e-6)
    assert found[12].abs().max() > 1e-3


def test_the_order_of_pairs_and_of_answers_is_that_of_the_rollout(make_language_model: Make) -> None:
    """Each pair's implicit rewards from a forward pass of its own, in any order; swapped answers swap the rewards."""
    policy = make_language_model(critic=False, micro_batch_size=6)
    nudge(policy)
    batch, algorithm = batch_of(policy), make()
    order = np.array([5, 0, 3])
    together = algorithm.evaluate(policy, batch, order)
    for row, pair in enumerate(order):
        alone = algorithm.evaluate(policy, batch, np.array([pair]))
        torch.testing.assert_close(torch.stack([x[row] for x in together]), torch.stack([x[0] for x in alone]))
    swapped = batch_of(policy, pairs=[(i, rejected, chosen) for i, chosen, rejected in PAIRS])
    other = algorithm.evaluate(policy, swapped, order)
    torch.testing.assert_close(other.reward_chosen, together.reward_rejected)
    assert (other.reward_chosen - together.reward_chosen).abs().min() > 1e-3


def test_a_step_is_torchs_adam_on_the_mean_of_each_minibatch(make_language_model: Make) -> None:
    """Two epochs of three minibatches with clipping and the second iteration's annealed rate, by plain autograd."""
    policy, twin = (make_language_model(critic=False) for _ in range(2))
    algorithm = make(num_epochs=2, num_minibatches=3, max_grad_norm=0.5, anneal_lr=True)
    algorithm.setup(policy, 4, seed=7)
    metrics = [algorithm.learn(policy, roll(policy), False) for _ in range(2)]
    other = make()
    adam = torch.optim.Adam(twin.parameters(), eps=1e-8)
    rng = np.random.default_rng(7)
    norms: list[float] = []
    for lr in (1e-2, 0.75e-2):
        batch = batch_of(twin)
        adam.param_groups[0]["lr"] = lr
        for pairs in (part for _ in range(2) for part in np.split(rng.permutation(6), 3)):
            adam.zero_grad()
            other.evaluate(twin, batch, pairs).loss.mean().backward()
            norms.append(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5).item())
            adam.step()
    for ours, theirs in zip(policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert metrics[1]["grad/norm_mean"] == pytest.approx(np.mean(norms[6:]), rel=1e-5) and max(norms[6:]) > 0.5
    assert metrics[1]["grad/clip_fraction"] == np.mean(np.array(norms[6:]) > 0.5) < 1
    assert metrics[0]["kl/old_exact"] > 0 and metrics[1]["kl/ref_exact"] > metrics[0]["kl/ref_exact"]


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_the_pairs(make_language_model: Make, lora: bool) -> None:
    """The loss is log 2 at the reference policy, where no pair is ranked; then all of them are."""
    policy = make_language_model(lora=lora, critic=False)
    algorithm, rollout = make(lr=3e-2), roll(policy)
    algorithm.setup(policy, 10, 0)
    metrics = [algorithm.learn(policy, rollout, False) for _ in range(10)]
    first, last = metrics[0], metrics[-1]
    assert first["dpo/loss"] == pytest.approx(math.log(2), abs=1e-5) and first["dpo/accuracy"] < 1
    assert last["dpo/loss"] < 0.3 and last["dpo/accuracy"] == 1.0 and last["dpo/margin"] > 1.0
    assert last["dpo/margin"] == pytest.approx(last["dpo/reward_chosen"] - last["dpo/reward_rejected"], abs=1e-5)


def test_the_gradients_variance_is_that_of_single_pairs(make_language_model: Make) -> None:
    """tr Sigma of a pair's gradient, each pair a group of its own, by the definition."""
    policy = make_language_model(critic=False)
    nudge(policy)
    rollout = roll(policy)
    algorithm = make(lr=1e-12)
    algorithm.setup(policy, 10, 0)
    metrics = algorithm.learn(policy, rollout, True)
    single = torch.stack([gradient(policy, batch_of(policy), [i]) for i in range(6)]).double()
    trace = single.var(0).sum().item()
    assert metrics["gradvar/num_groups"] == 6 and metrics["gradvar/before"] == pytest.approx(trace, rel=1e-3)
    assert metrics["gradvar/after"] == pytest.approx(trace, rel=1e-3)
    assert metrics["gradvar/before_noise_share"] == pytest.approx(trace / 6 / single.mean(0).square().sum().item(), rel=1e-3)


def test_a_step_that_is_not_finite_is_not_taken_and_its_cause_is_named(make_language_model: Make) -> None:
    policy = make_language_model(critic=False)
    rollout = roll(policy)
    before = [p.clone() for p in policy.parameters()]
    algorithm = make()
    algorithm.setup(policy, 10, 0)
    rollout.old.logp_ref_N[3] = math.nan
    where = r"\(gradient step 1 of the iteration\)\."
    with pytest.raises(NonFiniteError, match=rf"logp_ref of a sample is NaN or infinite; look for NaN in the weights .* {where}"):
        algorithm.learn(policy, rollout, False)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    rollout = roll(policy)
    algorithm.beta = 1e38  # the gradients exceed float32
    with pytest.raises(NonFiniteError, match=rf"; lower algorithm\.lr=0\.01 {where}"):
        algorithm.learn(policy, rollout, False)
    with torch.no_grad():
        next(iter(policy.parameters())).fill_(math.nan)
    with pytest.raises(NonFiniteError, match=rf"parameters became NaN or infinite by the step before; lower .* {where}"):
        algorithm.learn(policy, roll(make_language_model(critic=False)), False)


def test_what_cannot_run_is_refused(make_language_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for knob, value in (("beta", 0), ("lr", -1), ("num_epochs", 0), ("num_minibatches", 1.5), ("max_grad_norm", 0)):
        with pytest.raises(ConfigError, match=rf"algorithm\.{knob}={value}: must be"):
            make(**{knob: value})
    with pytest.raises(ConfigError, match=r"algorithm\.num_minibatches=4: does not divide 6 pairs per iteration"):
        make(num_minibatches=4).validate(12)
    make(num_minibatches=3).validate(12)
    with pytest.raises(ConfigError, match=r"task\.micro_batch_size=1: the two answers of a pair share a forward pass"):
        make().setup(make_language_model(critic=False, micro_batch_size=1), 10, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2: algo=dpo runs in one process"):
        make().validate(12)
