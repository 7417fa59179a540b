"""Completions that another engine drew: what is handed to vLLM and taken from it, and the truncated weight of its tokens."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import PROMPTS, batch_of, nudge, objective

from rgpo.core import gates
from rgpo.errors import ConfigError
from rgpo.language.policy.samplers import VLLM, Own
from rgpo.language.policy.token_batch import sampler_gap


def test_own_completions_are_drawn_with_what_is_learnt(make_language_model: Any) -> None:
    policy = make_language_model(lora=True)
    nudge(policy)
    completions = Own()(policy, PROMPTS, torch.Generator().manual_seed(0))
    batch = batch_of(policy)
    gap = sampler_gap(batch.logp_old, batch.completions)
    assert gap.abs().max() < 1e-4
    assert (batch.completions.logp_BT[~batch.completions.completion_mask_BT.bool()] == 0).all()
    assert torch.equal(completions.sequence_BS, batch.completions.sequence_BS)
    assert (batch.correction == 1).all()


def test_a_token_counts_by_its_truncated_weight(make_language_model: Any) -> None:
    """d loss/d logp of a token is its correction times what it is without."""
    policy = make_language_model(critic=False)
    batch = batch_of(policy, num_minibatches=1)
    piece = batch.minibatches[0][0]
    correction = torch.linspace(0.2, 2.0, len(batch.correction))
    found = []
    for weighed in (batch, batch._replace(correction=correction)):
        seen = policy.see(piece)
        leaf = seen.logp_n.detach().requires_grad_()
        out = policy.surrogate(seen._replace(logp_n=leaf), piece, weighed, weighed.advantage, objective(gates.Clip()), 0.0)
        found.append(torch.autograd.grad(out.loss.sum(), leaf)[0])
    torch.testing.assert_close(found[1], found[0] * correction[piece.tokens_n])


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
    module.LLM, module.SamplingParams = Engine, SimpleNamespace  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: SimpleNamespace(number=number, path=path)  # type: ignore[attr-defined]
    for name, fake in (("vllm", module), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, fake)


def test_vllm_gets_adapters_and_gives_tokens_with_their_probabilities(make_language_model: Any, vllm: None) -> None:
    policy, sampler = make_language_model(lora=True), VLLM()
    for _ in range(2):
        completions = sampler(policy, PROMPTS, torch.Generator().manual_seed(0))
    assert sampler._engine.options["max_lora_rank"] == 2
    assert completions.finished_B.tolist() == [False, True] * 6
    assert completions.completion_mask_BT.sum(1).tolist() == [4, 3] * 6
    assert completions.logp_BT[1].tolist() == [-0.5, -1.0, -1.5, 0.0]
    row = completions.sequence_BS[1][completions.attention_mask_BS[1].bool()]
    assert row.tolist() == [*PROMPTS[1], 21, 30, 1]
    assert policy.look_back(completions, np.random.default_rng(0))["logp_old_N"].max() < 0


def test_what_vllm_cannot_do_is_a_sentence(make_language_model: Any, vllm: None) -> None:
    with pytest.raises(ConfigError, match=r"set task\.lora or use sampler@task.sampler=own"):
        VLLM()(make_language_model(lora=False), PROMPTS, torch.Generator())
    with pytest.raises(ConfigError, match=r"task\.sampler\.correction_cap=0\.5: must be at least 1"):
        Own(correction_cap=0.5)


def test_vllm_that_is_not_installed_names_the_command() -> None:
    with pytest.raises(ConfigError, match=r"needs the package vllm; install it with `pip install rgpo\[vllm\]`"):
        VLLM().check()
