"""The layout of completions in packed rows, by hand, and the same numbers without packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policies import batch_of, engine, make_sgd, nudge
from torch.utils._python_dispatch import TorchDispatchMode

from rgpo.language.policy import attention_masks, language_model
from rgpo.language.policy.generation import make_completions
from rgpo.language.policy.language_model import LanguageModel
from rgpo.language.policy.packed_attention import plan_attention
from rgpo.language.policy.packing import MicroBatch, assign_rows, group_by_prompt, make_micro_batch

Make = Callable[..., LanguageModel]


class Largest(TorchDispatchMode):
    """The size of the largest array that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in (out if isinstance(out, tuple) else [out]) if isinstance(x, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return out


A, B = [5, 9, 30], [7]
DRAWN = [(A, [20, 21, 1]), (B, [22]), (A, [23, 24]), (B, [25, 26])]
COMPLETIONS = make_completions(
    [prompt for prompt, _ in DRAWN], [(ids, [0.0] * len(ids), ids[-1] == 1) for _, ids in DRAWN], 0, torch.device("cpu")
)


def test_a_packed_row_is_each_prompt_with_its_completions_without_their_last_tokens() -> None:
    view = make_micro_batch(COMPLETIONS, torch.tensor([2, 1, 0]), assign_rows(COMPLETIONS, packed=True), packed=True)
    first = view.input_ids_UW[0, 0] == 5
    a, b = (0, 6) if first else (1, 0)  # where the prompts begin
    assert view.input_ids_UW.shape == (1, 7)
    assert view.input_ids_UW[0, a : a + 6].tolist() == [5, 9, 30, 23, 20, 21] and view.input_ids_UW[0, b] == 7
    assert view.position_ids_UW[0, a : a + 6].tolist() == [0, 1, 2, 3, 3, 4] and view.position_ids_UW[0, b] == 0
    assert view.known_UW.all()
    assert view.targets_n.tolist() == [23, 24, 22, 20, 21, 1]  # completion by completion, in the order of the index
    assert view.tokens_n.tolist() == [4, 5, 3, 0, 1, 2]
    assert view.live_bt.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert view.sources_n.tolist() == [a + 2, a + 3, b, a + 2, a + 4, a + 5]
    assert view.predicting(view.input_ids_UW[..., None])[:, 0].tolist() == [30, 23, 7, 30, 20, 21]


def test_a_row_without_packing_holds_one_completion() -> None:
    view = make_micro_batch(COMPLETIONS, torch.arange(4), assign_rows(COMPLETIONS, packed=False), packed=False)
    assert view.input_ids_UW.tolist() == [[5, 9, 30, 20, 21], [7, 0, 0, 0, 0], [5, 9, 30, 23, 0], [7, 25, 0, 0, 0]]
    assert view.known_UW.sum(1).tolist() == [5, 1, 4, 2] and view.packed_rows is None


def test_a_completion_sees_its_prompt_and_itself_alone() -> None:
    seen = attention_masks.segment_visibility(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    lowest = torch.finfo(torch.float32).min
    assert attention_masks.additive_mask(torch.tensor([True, False]), torch.float32).tolist() == [0.0, lowest]


def test_completions_of_a_prompt_stay_together_and_short_rows_come_first() -> None:
    rows = assign_rows(COMPLETIONS, packed=True)
    assert rows[0] == rows[2] != rows[1] == rows[3]
    assert [index.tolist() for index in group_by_prompt(np.arange(4), COMPLETIONS, rows, 2)] == [[1, 3], [2, 0]]
    assert [index.tolist() for index in group_by_prompt(np.array([3, 0, 2]), COMPLETIONS, rows, 8)] == [[3, 2, 0]]


@pytest.mark.parametrize(("max_new_tokens", "num_calls"), [(24, 1), (3, 2)])
def test_reading_a_prompt_once_changes_no_number(
    make_language_model: Make, monkeypatch: pytest.MonkeyPatch, max_new_tokens: int, num_calls: int
) -> None:
    """Log-probabilities, reference and gradient against rows of one completion, which transformers masks itself."""
    found: list[dict[str, Any]] = []
    for packed in (True, False):
        if not packed:
            monkeypatch.setattr(language_model, "enable_packing", lambda model: False)
        policy = make_language_model(micro_batch_size=12, max_new_tokens=max_new_tokens)
        nudge(policy)
        batch = batch_of(policy, num_minibatches=1)
        (view,) = batch.minibatches()[0].views
        assert isinstance(view, MicroBatch)
        assert (0 if view.packed_rows is None else len(view.packed_rows.calls)) == packed * num_calls
        tokens = view.known_UW.sum().item()
        samples, prompts = batch.samples, 3 + 1 + 6 + 2
        assert tokens == (prompts if packed else 3 * prompts) + len(samples.logp_old) - 12
        one = batch.with_advantage(torch.ones_like(samples.advantage)).at(view)
        engine(make_sgd(policy)).loss(policy.forward(view), one, kl_coef=0.1)[0].backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
        found.append({"old": samples.logp_old, "ref": samples.logp_ref, "value": samples.value_old, "gradient": gradient})
    assert found[0]["gradient"].norm() > 0.1
    for key, x in found[0].items():
        torch.testing.assert_close(x, found[1][key], rtol=1e-4, atol=1e-6)


def scores_per_token(prompt: int, length: int, group_size: int) -> float:
    """Scores of a head per token of prompts and completions, counted with each: 32 completions of one length, in groups."""
    start = torch.arange(32) // group_size * (prompt + group_size * length)
    own = start + prompt + torch.arange(32) % group_size * length
    plan = plan_attention(start, torch.full((32,), prompt), own, torch.full((32,), length))
    assert plan.places_N.sort().values.unique().shape == (32 // group_size * prompt + 32 * length,)
    return plan.num_scores / (32 * (prompt + length))


@pytest.mark.parametrize(("prompt", "length"), [(16, 32), (16, 128), (16, 512), (200, 32)])
def test_the_cost_of_attention_does_not_grow_with_the_group(prompt: int, length: int) -> None:
    """And is at most 4/3 of the scores that are needed, beside the prompts' own where these are shorter."""
    per_token = [scores_per_token(prompt, length, group_size) for group_size in (1, 4, 16, 32)]
    assert per_token == sorted(per_token, reverse=True)
    needed = length * (prompt + length / 2) / (prompt + length)
    extra = prompt**2 / 2 / (prompt + length)
    assert all(x <= 4 / 3 * needed + extra + 1 for x in per_token)


def test_no_array_grows_with_the_square_of_the_group(make_language_model: Make) -> None:
    """The largest array of a forward pass of 4 and of 32 completions of a prompt."""
    policy = make_language_model(max_new_tokens=24)
    largest = {}
    for count in (4, 32):
        drawn = [([20, 21] * 12, [0.0] * 24, False)] * count
        completions = make_completions([A] * count, drawn, 0, torch.device("cpu"))
        rows = assign_rows(completions, packed=True)
        with torch.no_grad(), Largest() as seen:
            policy.forward(make_micro_batch(completions, torch.arange(count), rows, packed=True), entropy=False)
        largest[count] = seen.largest
    assert largest[32] <= 8 * largest[4]


def test_models_without_custom_masks_or_rotary_positions_keep_one_completion_per_row(make_language_model: Make) -> None:
    config = make_language_model().model.config
    assert attention_masks.supports_packing(config)
    for name, value in (
        ("_attn_implementation", "flash_attention_2"),
        ("_attn_implementation", "eager"),
        ("layer_types", ["full_attention", "sliding_attention"]),
    ):
        other = type(config)(**config.to_dict() | {"use_sliding_window": True, "sliding_window": 4})
        other._attn_implementation = "sdpa"
        setattr(other, name, value)
        assert not attention_masks.supports_packing(other)
    learned = type(config)(**config.to_dict())
    learned._attn_implementation, learned.rope_parameters = "sdpa", None
    assert attention_masks.accepts_custom_masks(learned) and not attention_masks.supports_packing(learned)


def test_completions_of_one_token_add_nothing_to_a_row(make_language_model: Make) -> None:
    policy = make_language_model(max_new_tokens=1)
    batch = batch_of(policy, num_minibatches=1)
    (view,) = policy.subset(batch, np.arange(4)).minibatches()[0].views
    assert view.input_ids_UW.shape == (1, 3 + 1 + 6 + 2) and view.num_samples == 4
    torch.testing.assert_close(policy.forward(view).logp, batch.samples.logp_old[view.tokens_n], rtol=1e-6, atol=1e-6)
    assert (batch.samples.logp_old < 0).all()
