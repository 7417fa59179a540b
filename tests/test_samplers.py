"""Samplers: prompts in order, the interface to vLLM, the truncated weight of its tokens, and stored preference pairs."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_assets
from tiny_policies import batch_of
from update_parts import algorithm, gae, natural_gradient, objective, sgd

from rgpo.core import gates
from rgpo.core.advantages import GroupRelative
from rgpo.core.kl_penalty import RewardKL
from rgpo.errors import ConfigError
from rgpo.language.assets import LanguageAssets
from rgpo.language.policy.generation import completion_ids
from rgpo.language.policy.samplers import VLLM, OfflinePairs, Own
from rgpo.language.policy.token_batch import sampler_gap
from rgpo.language.task import Language
from rgpo.learning.loss import policy_loss
from rgpo.learning.types import Requirements

PROMPTS = [[5, 9, 30], [7], [11, 12, 13, 14, 15, 16], [40, 41]]
PAIRS = [(1, [20, 21, 1], [22, 1]), (0, [23, 24, 25, 26], [27, 1]), (1, [28, 1], [20, 1]), (3, [29, 1], [30, 31, 1])]


@pytest.fixture
def assets(make_language_model: Any) -> LanguageAssets:
    return make_assets(make_language_model(lora=True).model, None, PROMPTS, PAIRS)


def prompt_ids(completions: Any) -> list[list[int]]:
    width = completions.sequence_BS.shape[1] - completions.completion_mask_BT.shape[1]
    rows = zip(completions.sequence_BS[:, :width], completions.attention_mask_BS[:, :width].bool(), strict=True)
    return [row[mask].tolist() for row, mask in rows]


def test_own_samples_the_policy_group_by_group(make_language_model: Any, assets: LanguageAssets) -> None:
    """The completions are the policy's for the same random numbers, with its probabilities up to rounding."""
    policy, sampler = make_language_model(lora=True), Own()
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    assert sampler.prompts(assets, 6) == assets.train_prompts and sampler.on_policy and sampler.correction_cap is None
    completions = sampler.collect(policy, assets, [2, 0], 3, torch.Generator().manual_seed(0))
    repeated = [PROMPTS[2]] * 3 + [PROMPTS[0]] * 3
    assert prompt_ids(completions) == repeated
    expected = policy.generate(repeated, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(completions, expected, strict=True))
    old = policy.compute_old_logprobs(completions, 1, np.random.default_rng(0))
    assert sampler_gap(old.logp_old_N, completions).abs().max() < 1e-4
    assert (completions.logp_BT[~completions.completion_mask_BT.bool()] == 0).all()
    assert (batch_of(policy).samples.correction == 1).all()


def test_a_tokens_gradient_is_scaled_by_its_truncated_weight(make_language_model: Any) -> None:
    """d loss/d logp of a token is its correction times the gradient without correction."""
    policy = make_language_model(critic=False)
    batch = batch_of(policy, num_minibatches=1)
    view = batch.minibatches()[0].views[0]
    samples = batch.at(view)
    correction = torch.linspace(0.2, 2.0, len(samples.logp_old))
    found = []
    for weighted in (samples._replace(correction=None), samples._replace(correction=correction)):
        out = policy.forward(view)
        leaf = out.logp.detach().requires_grad_()
        loss, _ = policy_loss(
            out._replace(logp=leaf), weighted, objective=objective(gates.Clip(eps_low=0.2, eps_high=0.2, cap=None))
        )
        found.append(torch.autograd.grad(loss, leaf)[0])
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0] * correction)


class Engine:
    """vLLM's LLM, as far as it is used: draws fixed tokens and remembers what it was given."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, 0

    def generate(self, prompts: Any, params: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        from pathlib import Path

        self.calls += 1
        assert (Path(lora_request.path) / "adapter_model.safetensors").is_file() and lora_request.number == self.calls
        assert len({p.seed for p in params}) == len(params) == len(prompts) and not use_tqdm
        drawn = []
        for i, prompt in enumerate(prompts):
            ids = [20 + i, 30, 1] if i % 2 else [20 + i, 30, 31, 32]
            entries = [{token: SimpleNamespace(logprob=-0.5 * (t + 1))} for t, token in enumerate(ids)]
            drawn.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, logprobs=entries)], prompt=prompt))
        return drawn


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = Engine, SimpleNamespace
    request.LoRARequest = lambda name, number, path: SimpleNamespace(number=number, path=path)
    for name, fake in (("vllm", module), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, fake)


def test_vllm_gets_adapters_and_returns_tokens_with_their_log_probabilities(
    make_language_model: Any, assets: LanguageAssets, vllm: None
) -> None:
    policy, sampler = make_language_model(lora=True), VLLM()
    assert sampler.prompts(assets, 6) == assets.train_prompts and sampler.on_policy
    for _ in range(2):
        completions = sampler.collect(policy, assets, [0, 1, 2, 3] * 3, 1, torch.Generator().manual_seed(0))
    assert sampler._engine.options["max_lora_rank"] == 2
    assert completions.finished_B.tolist() == [False, True] * 6
    assert completions.completion_mask_BT.sum(1).tolist() == [4, 3] * 6
    assert completions.logp_BT[1].tolist() == [-0.5, -1.0, -1.5, 0.0]
    row = completions.sequence_BS[1][completions.attention_mask_BS[1].bool()]
    assert row.tolist() == [*PROMPTS[1], 21, 30, 1]
    assert policy.compute_old_logprobs(completions, 1, np.random.default_rng(0)).logp_old_N.max() < 0


def test_settings_that_the_samplers_cannot_serve_are_refused(
    make_language_model: Any, assets: LanguageAssets, vllm: None
) -> None:
    with pytest.raises(ConfigError, match=r"set task\.lora or use sampler@task.sampler=own"):
        VLLM().collect(make_language_model(lora=False), assets, [0], 1, torch.Generator())
    for kind in (Own, VLLM):
        with pytest.raises(ConfigError, match=r"task\.sampler\.correction_cap=0\.5: must be at least 1"):
            kind(correction_cap=0.5)
    with pytest.raises(ConfigError, match=r"task\.sampler\.gpu_memory_utilization=1: must lie strictly between 0 and 1"):
        VLLM(gpu_memory_utilization=1)
    for group_size in (1, 3):
        with pytest.raises(ConfigError, match=rf"task\.group_size={group_size}: .* set task\.group_size=2"):
            OfflinePairs().check(group_size)
    OfflinePairs().check(2)


def test_vllm_that_is_not_installed_names_the_command() -> None:
    with pytest.raises(ConfigError, match=r"needs the package vllm; install it with `pip install rgpo\[vllm\]`"):
        VLLM().check(4)


def test_offline_pairs_are_groups_of_the_chosen_and_the_rejected_answer(make_language_model: Any, assets: LanguageAssets) -> None:
    """A prompt may have several pairs; the generator is not used, and the answers' own log-probabilities are unknown."""
    policy, sampler, generator = make_language_model(lora=True, max_new_tokens=4), OfflinePairs(), torch.Generator()
    assert [prompt.ids for prompt in sampler.prompts(assets, 4)] == [PROMPTS[i] for i, _, _ in PAIRS]
    before = generator.get_state()
    completions = sampler.collect(policy, assets, [1, 2, 0], 2, generator)
    assert torch.equal(generator.get_state(), before)
    picked = [PAIRS[1], PAIRS[2], PAIRS[0]]
    assert completion_ids(completions) == [ids for _, chosen, rejected in picked for ids in (chosen, rejected)]
    assert prompt_ids(completions) == [PROMPTS[i] for i, _, _ in picked for _ in range(2)]
    assert completions.finished_B.tolist() == [False, True, True, True, True, True]  # the first one was cut
    live = completions.completion_mask_BT.bool()
    assert completions.logp_BT[live].isnan().all() and (completions.logp_BT[~live] == 0).all()
    old = policy.compute_old_logprobs(completions, 1, np.random.default_rng(0))
    assert (old.logp_old_N < 0).all() and old.logp_old_N.isfinite().all()
    assert sampler.correction_cap is None and not sampler.on_policy


def test_offline_pairs_are_loaded_for_the_limit_of_the_policy_and_only_on_request(make_language_model: Any) -> None:
    calls: list[int] = []
    policy = make_language_model(lora=True, max_new_tokens=5)

    def preference_pairs(max_new_tokens: int) -> list[Any]:
        calls.append(max_new_tokens)
        return stored

    stored = make_assets(policy.model, None, PROMPTS, PAIRS).preference_pairs(5)
    assets = make_assets(policy.model, None, PROMPTS, preference_pairs=preference_pairs)
    Own().prompts(assets, 5)
    Own().collect(policy, assets, [0], 2, torch.Generator().manual_seed(0))
    assert calls == []
    OfflinePairs().prompts(assets, 5)
    OfflinePairs().collect(policy, assets, [0], 2, torch.Generator())
    assert calls == [5, 5]


def make_task(sampler: Any, **changes: Any) -> Language:
    counts = {"num_prompts": 4, "group_size": 2, "max_new_tokens": 8, "micro_batch_size": 4, "num_kl_tokens": 8}
    counts |= {"staleness": 0, "num_eval_prompts": 4, "num_samples": 2}
    texts: dict[str, Any] = {
        "ratio": "token",
        "reduction": "token_mean",
        "parallel": "ddp",
        "stop_tokens": None,
        "stop_strings": [],
    }
    return Language(
        source=SimpleNamespace(),
        sampler=sampler,
        lora=None,
        temperature=1.0,
        gradient_checkpointing=False,
        center_scores=True,
        **counts,
        **texts | changes,
    )


GATE_FAMILY: dict[str, dict[str, Any]] = {
    "ppo": {"advantage": gae()},
    "grpo": {"advantage": GroupRelative(scale="group", eps=1e-4, normalize="none"), "penalty": RewardKL(coef=0.05)},
    "trpo": {"gate": gates.Identity(), "update": natural_gradient()},
}
SAMPLERS = {"own": Own(), "vllm": VLLM(), "pairs": OfflinePairs(), "custom": SimpleNamespace(on_policy=False)}


@pytest.mark.parametrize("name", GATE_FAMILY)
def test_the_gate_family_needs_its_own_completions(name: str) -> None:
    requirements = algorithm(**GATE_FAMILY[name]).requirements
    for on_policy in ("own", "vllm"):
        make_task(SAMPLERS[on_policy]).validate(requirements)
    for stored, title in (("pairs", "OfflinePairs"), ("custom", "SimpleNamespace")):
        message = rf"^task\.sampler={title}: the algorithm learns from its own completions; use sampler@task\.sampler=own\.$"
        with pytest.raises(ConfigError, match=message):
            make_task(SAMPLERS[stored]).validate(requirements)


def test_an_algorithm_of_stored_pairs_needs_them() -> None:
    requirements = Requirements(gamma=1.0, critic=False, num_minibatches=1, pairs=True)
    for stored in ("pairs", "custom"):
        make_task(SAMPLERS[stored]).validate(requirements)
    for on_policy, title in (("own", "Own"), ("vllm", "VLLM")):
        message = rf"^task\.sampler={title}: the algorithm learns from stored pairs; use sampler@task\.sampler=offline_pairs\.$"
        with pytest.raises(ConfigError, match=message):
            make_task(SAMPLERS[on_policy]).validate(requirements)


def test_compiled_updates_are_refused() -> None:
    """compile=auto is no request: language models are not compiled."""
    message = r"^update\.compile=True: language models are not compiled; use auto or false\.$"
    for update in (sgd, natural_gradient):
        for choice in ("auto", False):
            make_task(Own()).validate(algorithm(gate=gates.Identity(), update=update(compile=choice)).requirements)
        with pytest.raises(ConfigError, match=message):
            make_task(Own()).validate(algorithm(gate=gates.Identity(), update=update(compile=True)).requirements)
    with pytest.raises(ConfigError, match=message):
        make_task(Own()).validate(Requirements(gamma=1.0, critic=False, num_minibatches=1, compiled=True))
