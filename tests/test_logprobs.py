"""Blockwise token log-probabilities and entropies against the closed form from whole logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import peft
import pytest
import torch
from torch import Tensor, nn

from rgpo.language.policy import logprobs
from rgpo.language.policy.logprobs import token_statistics

N, D, V = 37, 8, 61


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 tokens x 7 columns, so that neither N nor V is a multiple."""
    monkeypatch.setattr(logprobs, "BLOCK_ROWS", 16)
    monkeypatch.setattr(logprobs, "BLOCK_BYTES", 4 * 16 * 7)


def plain(hidden: Tensor, head: Callable[[Tensor], Tensor], targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(head(hidden) / temperature, -1)
    return logp[torch.arange(len(hidden)), targets], -(logp.exp() * logp).sum(-1)


def tied(dtype: torch.dtype) -> nn.Linear:
    head = nn.Linear(D, V, bias=False, dtype=dtype)
    head.weight = nn.Embedding(V, D, dtype=dtype).weight
    return head


def lora(dtype: torch.dtype, dropout: float = 0.0, trained_base: bool = False) -> nn.Module:
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"], init_lora_weights=False, lora_dropout=dropout)
    head = peft.get_peft_model(nn.Sequential(nn.Linear(D, V, dtype=dtype)), config).base_model.model[0].to(dtype)
    head.base_layer.weight.requires_grad_(trained_base)
    return head


class Capped(nn.Module):
    """A head that is not linear: Gemma's soft-capped logits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(D, V, dtype=dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return 3 * (self.linear(hidden) / 3).tanh()


HEADS = {
    "linear": partial(nn.Linear, D, V, bias=False),
    "bias": partial(nn.Linear, D, V),
    "tied": tied,
    "lora": lora,
    "lora_and_base": partial(lora, trained_base=True),
    "capped": Capped,
}


def inputs(dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = 3 * torch.randn(N, D, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", list(HEADS))
def test_values_and_gradients_are_the_plain_ones(name: str, dtype: torch.dtype, tolerance: float, temperature: float) -> None:
    torch.manual_seed(1)
    head = HEADS[name](dtype=dtype)
    hidden, targets = inputs(dtype)
    leaves = [hidden, *(x for x in head.parameters() if x.requires_grad)]
    slopes = torch.randn(2, N, dtype=dtype)
    found = token_statistics(hidden, head, targets, temperature=temperature, max_bytes=4 * logprobs.LIVE * V * 5)
    wanted = plain(hidden, head, targets, temperature)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for weight in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.3)):  # by log-probability, by entropy, by both
        pair = [(w * s * x).sum() for w, s, x in zip(weight, slopes, found, strict=True) if w]
        gradient = torch.autograd.grad(sum(pair), leaves, retain_graph=True)
        pair = [(w * s * x).sum() for w, s, x in zip(weight, slopes, wanted, strict=True) if w]
        for a, b in zip(gradient, torch.autograd.grad(sum(pair), leaves, retain_graph=True), strict=True):
            assert (a - b).norm() <= tolerance * b.norm()


def test_a_tied_weight_receives_the_gradients_of_both_uses() -> None:
    head, tokens = tied(torch.float64), torch.randint(V, (N,))
    results = []
    for statistics in (token_statistics, partial(plain, temperature=1.0)):
        head.weight.grad = None
        statistics(nn.functional.embedding(tokens, head.weight), head, tokens)[0].sum().backward()
        results.append(head.weight.grad)
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_dropout_of_the_adapter_is_the_same_in_both_passes() -> None:
    head = lora(torch.float64, dropout=0.5).train()
    hidden, targets = inputs(torch.float64)
    torch.manual_seed(2)
    (found,) = torch.autograd.grad(token_statistics(hidden, head, targets).logp_N.sum(), hidden)
    torch.manual_seed(2)
    (wanted,) = torch.autograd.grad(plain(hidden, head, targets, 1.0)[0].sum(), hidden)
    torch.testing.assert_close(found, wanted)


def test_disabled_and_merged_adapters_are_respected() -> None:
    head = lora(torch.float64)
    hidden, targets = inputs(torch.float64)
    on = token_statistics(hidden, head, targets).logp_N
    head.merge()
    torch.testing.assert_close(token_statistics(hidden, head, targets).logp_N, on)
    head.unmerge()
    head.enable_adapters(False)
    off = plain(hidden, head.base_layer, targets, 1.0)[0]
    torch.testing.assert_close(token_statistics(hidden, head, targets).logp_N, off)
    assert (on - off).abs().max() > 0.1


def test_values_are_the_same_bits_with_and_without_gradients() -> None:
    head, (hidden, targets) = nn.Linear(D, V), inputs(torch.float32)
    with torch.no_grad():
        old = token_statistics(hidden, head, targets)
    for a, b in zip(old, token_statistics(hidden, head, targets), strict=True):
        assert torch.equal(a, b)


def test_logits_of_any_offset_and_half_precision() -> None:
    head, (hidden, targets) = nn.Linear(D, V), inputs(torch.float32)
    head.bias.data += 1e3
    far = token_statistics(hidden, head, targets)
    head.bias.data -= 1e3
    for a, b in zip(far, token_statistics(hidden, head, targets), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # float32 near 1e3 has steps of 6e-5
    half = token_statistics(hidden.bfloat16(), head.bfloat16(), targets)
    assert half.logp_N.dtype == torch.float32
    wanted = plain(hidden.bfloat16().float(), head.float(), targets, 1.0)[0]
    torch.testing.assert_close(half.logp_N, wanted, rtol=0.02, atol=0.1)


def test_no_array_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is not linear is called on as many rows as max_bytes allows."""
    seen: list[int] = []

    def head(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return hidden @ torch.ones(D, V, dtype=hidden.dtype)

    hidden, targets = inputs(torch.float32)
    token_statistics(hidden, head, targets, max_bytes=4 * logprobs.LIVE * V * 5).logp_N.sum().backward()
    assert max(seen) == 5
    assert sum(seen) == 2 * N  # once more in the backward pass


def test_no_tokens_give_no_statistics() -> None:
    head, targets = nn.Linear(D, V), torch.zeros(0, dtype=torch.int64)
    logp, entropy = token_statistics(torch.zeros(0, D, requires_grad=True), head, targets)
    (logp.sum() + entropy.sum()).backward()
    assert logp.shape == entropy.shape == (0,)


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    head, (hidden, targets) = nn.Linear(D, V), inputs(torch.float32)
    with pytest.raises(ValueError, match=r"hidden_ND.shape=\(1, 37, 8\): needs \(N, D\)"):
        token_statistics(hidden[None], head, targets)
    with pytest.raises(ValueError, match=r"targets_N.shape=\(3,\): needs one target per token, 37"):
        token_statistics(hidden, head, targets[:3])
    with pytest.raises(ValueError, match="temperature=0: needs a positive number"):
        token_statistics(hidden, head, targets, temperature=0)
