"""The check of a model when a policy is made: slower ways where they are needed, refusals in a sentence, no random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import SAMPLING
from torch import nn

from rgpo.errors import ConfigError
from rgpo.language.policy.consistency import Consistency
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.pretrained import add_lora, load_causal_lm

Make = Callable[..., LanguageModel]


def refused(policy: LanguageModel, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        Consistency(policy).run(lambda line: None)
    message = str(error.value)
    assert message.startswith("task.source.model=") and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_healthy_model_passes_silently_and_draws_nothing(tiny_checkpoint: Path, lora: bool, dtype: str) -> None:
    model, _ = load_causal_lm(tiny_checkpoint, dtype=dtype, device="cpu")
    if lora:
        model = add_lora(model, rank=2, alpha=4.0, dropout=0.0, target_modules="all-linear", seed=0)
    else:
        model.requires_grad_(True)
    policy, logged = LanguageModel(model, SAMPLING, critic=True), list[str]()
    before = torch.get_rng_state()
    Consistency(policy).run(logged.append)
    assert torch.equal(torch.get_rng_state(), before) and not logged
    assert (policy.layout, policy.batching) == ("packed", "additive")
    assert all(p.grad is None for p in policy.model.parameters())


@pytest.mark.parametrize("lora", [False, True])
def test_dropout_that_is_always_on_is_refused(make_language_model: Make, lora: bool) -> None:
    policy = make_language_model(lora=lora)
    layer = policy.backbone.layers[0].mlp
    layer.register_forward_hook(lambda module, inputs, out: nn.functional.dropout(out, 0.1, training=True))
    refused(policy, r"two passes over one text by Qwen2ForCausalLM differ by .* nats per token; its forward pass is random")


def test_a_model_that_sees_the_future_is_refused(make_language_model: Make) -> None:
    policy = make_language_model()
    layer = policy.backbone.layers[0].mlp
    layer.register_forward_hook(lambda module, inputs, out: out + out.mean(1, keepdim=True))
    refused(policy, r"log-probabilities of Qwen2ForCausalLM change when it generates tokens .*additive: .*not causal")


def test_positions_that_count_padding_are_read_by_length_and_without_a_mask(make_language_model: Make) -> None:
    """Positions from 5 up wherever they are given, as a family that expects other positions would have them."""
    policy, logged = make_language_model(), list[str]()
    rotary = policy.backbone.rotary_emb
    forward = rotary.forward

    def shifted(x: Any, position_ids: Any) -> Any:
        given = position_ids.shape[0] > 1 or bool((position_ids[0].diff() != 1).any())
        return forward(x, position_ids * 3 if given else position_ids)

    rotary.forward = shifted
    Consistency(policy).run(logged.append)
    assert policy.batching in ("equal_length", "uncached") and policy.layout == "plain"
    assert len(logged) == 2 and "times what rounding explains" in logged[0] and "without a mask" in logged[1]


def test_a_model_without_a_backward_pass_is_refused(make_language_model: Make) -> None:
    policy = make_language_model()

    class Blocked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grad: Any) -> Any:
            raise RuntimeError("no kernel")

    policy.backbone.layers[1].mlp.register_forward_hook(lambda module, inputs, out: Blocked.apply(out))
    refused(policy, r"a Qwen2ForCausalLM cannot be trained \(RuntimeError: no kernel\)")


def test_running_out_of_memory_is_not_a_refusal(make_language_model: Make) -> None:
    policy = make_language_model()

    def exhausted(*_: Any) -> None:
        raise MemoryError

    policy.backbone.layers[1].mlp.register_forward_hook(exhausted)
    with pytest.raises(MemoryError):
        Consistency(policy).run(lambda line: None)
