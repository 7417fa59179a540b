"""Sampling against the model's own forward pass, row by row, and against transformers' greedy decoding."""

from __future__ import annotations

import math
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

from rgpo.errors import ConfigError, NonFiniteError
from rgpo.language.policy.generation import Completions, completion_ids, concatenate, generate, make_completions, sample_tokens
from rgpo.language.policy.growing_cache import growing_cache
from rgpo.language.policy.stopping import StopRule

V, EOS, PAD = 97, 1, 0
PROMPTS = [[5, 6, 7, 8, 9], [10], [5, 6, 7, 8, 9], [11, PAD, EOS, 12], [EOS, 3], [40, 41, 42]]


def make_model(**settings: Any) -> Any:
    """A random Qwen2 whose logits are wide enough for its choices to differ from row to row."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = transformers.Qwen2Config(**shape, **heads, initializer_range=0.3, **settings)
    return transformers.Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


def run(model: Any, prompts: list[list[int]] = PROMPTS, seed: int = 0, **settings: Any) -> Completions:
    given = {"max_new_tokens": 12, "temperature": 1.0, "eos_id": EOS, "pad_id": PAD} | settings
    given["stop"] = StopRule(frozenset([given.pop("eos_id")]))
    return generate(model, prompts, **given, generator=torch.Generator().manual_seed(seed))


def next_logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize(
    "settings", [{}, {"attn_implementation": "eager"}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}]
)
def test_a_padded_batch_draws_what_each_row_alone_would(settings: dict[str, Any]) -> None:
    """Every token again, from the whole unpadded row without a cache and the generator's numbers."""
    model = make_model(**settings)
    eos = completion_ids(run(model, eos_id=V))[1][3]  # a token that occurs
    result = run(model, eos_id=eos)
    uniform = torch.rand((len(PROMPTS), 12), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row, (prompt, drawn) in enumerate(zip(PROMPTS, completion_ids(result), strict=True)):
        for step, token in enumerate(drawn):
            logits = next_logits(model, prompt + drawn[:step])
            assert int(sample_tokens(logits[None], uniform[row, step, None], temperature=1.0)) == token
    assert len({len(x) for x in completion_ids(result)}) > 1  # rows left the batch at different steps


def test_the_masks_give_the_same_logits_in_training(model: Any) -> None:
    """A forward pass over the padded result agrees with each row alone, padding on either side."""
    result = run(model)
    mask = result.attention_mask_BS
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = model(input_ids=result.sequence_BS, attention_mask=mask, position_ids=position).logits
    assert padded.requires_grad  # sampled tokens can be used under autograd
    for row in range(len(PROMPTS)):
        real = mask[row].bool()
        alone = model(result.sequence_BS[row][real][None]).logits[0]
        torch.testing.assert_close(padded[row][real], alone, rtol=1e-4, atol=1e-5)


def test_greedy_is_the_greedy_decoding_of_transformers(model: Any) -> None:
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    eos = completion_ids(run(model, temperature=0, eos_id=V))[0][3]  # a token that occurs
    given = {"attention_mask": mask, "do_sample": False, "max_new_tokens": 12, "eos_token_id": eos, "pad_token_id": PAD}
    wanted = model.generate(ids, **given)
    result = run(model, temperature=0, eos_id=eos)
    assert torch.equal(result.sequence_BS, wanted)
    assert result.finished_B[0]
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    generate(model, PROMPTS, max_new_tokens=2, temperature=0, stop=StopRule(frozenset([eos])), pad_id=PAD, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("pad", [PAD, EOS, 50])
def test_the_mask_alone_distinguishes_eos_from_padding(model: Any, pad: int) -> None:
    """Prompts hold both ids, and eos may be the pad id: the completions are the same whatever pads them."""
    result, wanted = run(model, pad_id=pad, max_new_tokens=40), completion_ids(run(model, pad_id=60, max_new_tokens=40))
    found = completion_ids(result)
    assert found == wanted
    assert result.prompt_lengths_B.tolist() == [len(p) for p in PROMPTS]
    width = max(map(len, PROMPTS))
    for row, (prompt, drawn) in enumerate(zip(PROMPTS, found, strict=True)):
        tokens, mask = result.sequence_BS[row].tolist(), result.attention_mask_BS[row].tolist()
        left, right = width - len(prompt), result.completion_mask_BT.shape[1] - len(drawn)
        assert tokens == [pad] * left + prompt + drawn + [pad] * right
        assert mask == [0] * left + [1] * (len(prompt) + len(drawn)) + [0] * right
        assert bool(result.finished_B[row]) == (drawn[-1] == EOS)
        assert EOS not in drawn[:-1]
        assert len(drawn) == 40 or drawn[-1] == EOS
    assert max(map(len, found)) == result.completion_mask_BT.shape[1]


def test_eos_at_the_last_step_finishes_the_completion(model: Any) -> None:
    """With max_new_tokens=1 the row that draws eos is finished, and the others are cut."""
    first = [x[0] for x in completion_ids(run(model, max_new_tokens=1, eos_id=V))]
    result = run(model, max_new_tokens=1, eos_id=first[1])
    assert result.finished_B.tolist() == [x == first[1] for x in first]
    assert result.completion_mask_BT.tolist() == [[1]] * len(PROMPTS)


def test_no_forward_pass_is_made_once_all_have_ended(model: Any) -> None:
    rows: list[int] = []
    hook = model.register_forward_hook(lambda *call: rows.append(len(call[2].logits)))
    result = run(model, max_new_tokens=50)
    hook.remove()
    lengths = result.completion_mask_BT.sum(-1)
    passes = [int((lengths > step).sum()) for step in range(1, int(lengths.max()))]
    assert rows == [5, *passes]  # PROMPTS holds one prompt twice; later on only the rows that still run


def test_the_generator_decides_everything(model: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    state, outside = generator.get_state(), torch.get_rng_state()
    given = {"max_new_tokens": 12, "temperature": 1.0, "stop": StopRule(frozenset([EOS])), "pad_id": PAD, "generator": generator}
    first, second = generate(model, PROMPTS, **given), generate(model, PROMPTS, **given)
    generator.set_state(state)
    again = generate(model, PROMPTS, **given)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert completion_ids(first) != completion_ids(second)
    assert torch.equal(torch.get_rng_state(), outside)
    after = torch.Generator().manual_seed(4)
    torch.rand((len(PROMPTS), 12), generator=after, dtype=torch.float64)
    assert torch.equal(generator.get_state(), after.get_state())  # however long the completions were


def test_dropout_is_off_and_the_training_modes_are_restored() -> None:
    model = make_model(attention_dropout=0.5)
    wanted = completion_ids(run(model))
    model.train()
    model.lm_head.eval()
    assert completion_ids(run(model)) == wanted
    assert model.training and not model.lm_head.training


def test_a_peft_model_draws_with_its_adapter(model: Any) -> None:
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False, r=4, lora_alpha=16)
    adapted = peft.get_peft_model(make_model(), config)
    drawn = completion_ids(run(adapted))
    assert drawn != completion_ids(run(model))
    with adapted.disable_adapter():
        assert completion_ids(run(adapted)) == completion_ids(run(model))


def test_sampling_follows_the_softmax() -> None:
    """Frequencies over 20,000 draws within five standard errors of the closed form."""
    count, logits = 20_000, torch.tensor([2.0, -math.inf, 1.0, 0.0, 1.5])
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for temperature in (1.0, 0.5, 3.0):
        p = torch.softmax(logits / temperature, 0)
        drawn = sample_tokens(logits.expand(count, -1), uniform, temperature=temperature)
        frequency = drawn.bincount(minlength=5) / count
        assert ((frequency - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()


def test_the_largest_number_draws_no_impossible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.5, -math.inf, -math.inf]])
    for u in (0.0, 1 - 2**-53):
        token = sample_tokens(logits, torch.tensor([u], dtype=torch.float64), temperature=1.0)
        assert int(token) in (0, 1, 2)


def test_parts_of_a_batch_together_are_the_batch(model: Any) -> None:
    """Each slice of rows draws what it draws in the whole batch, and concatenation pads like it."""
    eos = completion_ids(run(model, eos_id=V))[1][3]  # a token that occurs
    whole = run(model, eos_id=eos)
    parts = [run(model, eos_id=eos, rows=rows) for rows in (slice(0, 3), slice(3, 6))]
    assert parts[0].sequence_BS.shape[1] != parts[1].sequence_BS.shape[1]
    for a, b in zip(concatenate(parts, PAD), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_completions_of_another_engine_have_the_same_layout(model: Any) -> None:
    drawn = run(model, eos_id=EOS)
    lengths = drawn.completion_mask_BT.sum(-1).tolist()
    logp = [row[:length].tolist() for row, length in zip(drawn.logp_BT, lengths, strict=True)]
    rows = list(zip(completion_ids(drawn), logp, drawn.finished_B.tolist(), strict=True))
    for a, b in zip(make_completions(PROMPTS, rows, PAD, torch.device("cpu")), drawn, strict=True):
        assert torch.equal(a, b)


def test_settings_out_of_range_are_refused(model: Any) -> None:
    for settings, message in [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"prompts": [[1], []]}, "each prompt needs at least one token"),
        ({"prompts": []}, "prompt_ids="),
    ]:
        with pytest.raises(ConfigError, match=message):
            run(model, **settings)
    with pytest.raises(NonFiniteError, match="logits"):
        sample_tokens(torch.tensor([[0.0, math.nan]]), torch.tensor([0.5], dtype=torch.float64), temperature=1.0)


def test_the_cache_holds_what_was_appended_and_moves_it_a_few_times_only() -> None:
    """600 tokens beside transformers' own cache, rows leaving on the way; the memory moves at each doubling."""
    ours, theirs = growing_cache(make_model().config), transformers.DynamicCache(config=make_model().config)
    generator, moves, place = torch.Generator().manual_seed(0), 0, 0
    ours.reorder_cache(torch.tensor([0]))  # nothing to take yet
    for step in range(600):
        rows = 3 if step < 300 else 2
        k, v = torch.randn(2, rows, 2, 1 + 8 * (step == 0), 8, generator=generator)
        found, expected = ours.update(k, v, 0), theirs.update(k, v, 0)
        moves, place = moves + (found[0].data_ptr() != place), found[0].data_ptr()
        if step == 299:
            for cache in (ours, theirs):
                cache.reorder_cache(torch.tensor([2, 0]))
        elif step % 50 == 0:
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert ours.get_seq_length() == theirs.get_seq_length() == 608
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert moves <= 2 + math.log2(608 / 9) + 1
