"""Ends of a completion: one set of tokens and texts for the samplers, the finished flag and the scored text."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_samplers import make_task
from tiny_models import make_assets, write_model
from transformers import AutoTokenizer, GenerationConfig

from rgpo.errors import ConfigError
from rgpo.language.data.chat import find_turn_end
from rgpo.language.evaluation import decode_completions
from rgpo.language.policy.generation import completion_ids, generate
from rgpo.language.policy.pretrained import load_causal_lm
from rgpo.language.policy.samplers import Own
from rgpo.language.policy.stopping import StopRule, find_stop_ids, token_id

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", template=None)


def chat(folder: Path, template: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def test_the_token_that_a_template_writes_after_an_answer_ends_a_turn(folder: Path) -> None:
    tokenizer = chat(folder, CHATML)
    assert find_turn_end(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert find_turn_end(tokenizer) is None  # plain text follows
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert find_turn_end(tokenizer) is None
    tokenizer.chat_template = None
    assert find_turn_end(tokenizer) is None


@pytest.mark.parametrize(("listed", "expected"), [(None, {1, 9}), (5, {1, 5, 9}), ([5, 6], {1, 5, 6, 9})])
def test_tokenizer_generation_config_and_template_are_united(listed: Any, expected: set[int]) -> None:
    model: Any = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=listed))
    assert find_stop_ids(model, SimpleNamespace(eos_token_id=1), 9) == expected


def test_a_completion_stops_at_any_of_several_tokens(folder: Path) -> None:
    """All tokens are about equally likely, so that both ends occur."""
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e-3)
    stop = StopRule(frozenset(range(100, 140)), tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(0)
    drawn = generate(model, [[5, 6]] * 40, max_new_tokens=12, temperature=1.0, stop=stop, pad_id=0, generator=generator)
    rows = completion_ids(drawn)
    assert not any(i in stop.ids for row in rows for i in row[:-1])
    assert [row[-1] in stop.ids for row in rows] == drawn.finished_B.tolist() and len({row[-1] for row in rows} & stop.ids) > 3
    texts = decode_completions(drawn, tokenizer, stop)
    assert texts == tokenizer.batch_decode([row[:-1] if row[-1] in stop.ids else row for row in rows], skip_special_tokens=True)


def test_a_text_that_spans_tokens_ends_a_completion_and_is_cut_off(folder: Path) -> None:
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    kind = {"max_new_tokens": 10, "temperature": 1.0, "pad_id": 0}
    whole = generate(model, [[5, 6]] * 6, **kind, stop=StopRule(frozenset()), generator=torch.Generator().manual_seed(0))
    texts = [tokenizer.decode(row) for row in completion_ids(whole)]
    found = next(text for text in texts if len(tokenizer(text[3:6])["input_ids"]) > 1 and text[3:6].isascii())[3:6]
    stop = StopRule(frozenset(), (found,), tokenizer)
    cut = generate(model, [[5, 6]] * 6, **kind, stop=stop, generator=torch.Generator().manual_seed(0))
    assert cut.finished_B.tolist() == [found in text for text in texts] and any(cut.finished_B.tolist())
    assert decode_completions(cut, tokenizer, stop) == [text.partition(found)[0] for text in texts]
    for row, before, ended in zip(completion_ids(cut), completion_ids(whole), cut.finished_B.tolist(), strict=True):
        assert row == before[: len(row)] and (found in tokenizer.decode(row)) == ended
        assert not ended or found not in tokenizer.decode(row[:-1])


def test_the_knobs_replace_the_set_and_add_texts(folder: Path) -> None:
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    task = make_task(Own())
    task.assets = make_assets(model, tokenizer, [[5, 6]], stop_ids=frozenset({7, 8}))
    assert task.stop_rule.ids == {1, 7, 8} and task.stop_rule.strings == ()
    task.stop_tokens, task.stop_strings = ["<|endoftext|>", 9], ["Human:"]
    assert task.stop_rule.ids == {1, 9} and task.stop_rule.strings == ("Human:",)


def test_bad_stops_are_refused(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in ("<|no_such|>", -1, 10_000):
        with pytest.raises(ConfigError, match=r"^task\.stop_tokens=.*: the tokenizer has no such token; check it\.$"):
            token_id(tokenizer, token)
    with pytest.raises(ConfigError, match=r"^task\.stop_tokens=\[\]: would let no completion end"):
        make_task(Own(), stop_tokens=[])
    with pytest.raises(ConfigError, match=r"^task\.stop_strings=\[''\]: must not contain an empty text"):
        make_task(Own(), stop_strings=[""])


def test_a_saved_list_of_ends_reaches_the_assets(tmp_path: Path) -> None:
    from rgpo.language.data.chat import make_chat_assets
    from rgpo.language.data.dialogue import Pair

    folder = write_model(tmp_path / "phi")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7], "pad_token_id": 0}))
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    pairs = [Pair("Human: a cat?", "yes", "no")]
    options: dict[str, Any] = {"max_prompt_tokens": 40, "max_new_tokens": 8, "reward_model": None, "gold_reward_model": None}
    assets = make_chat_assets(model, tokenizer, pairs, pairs, **options, versions={}, log=lambda line: None)
    assert assets.eos_id == 1 and assets.stop_ids == {1, 7}
