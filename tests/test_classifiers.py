"""Reward models of other people's formats: padding, contexts that are too short, tokenizers without padding, and encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_model, write_reward_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rgpo.errors import ConfigError
from rgpo.language.rewards.reward_model import ChatRewardModel

PROMPTS = ["Human: what is 1?", "Human: " + "what is a cat? " * 6, "Human: a"]
ANSWERS = ["a cat", "no cat at all", "x"]


def load(folder: Path, log: list[str] | None = None, batch_size: int = 8) -> ChatRewardModel:
    options: dict[str, Any] = {} if log is None else {"log": log.append}
    return ChatRewardModel("key", str(folder), dtype="float32", device="cpu", batch_size=batch_size, **options)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def one_by_one(reward_model: ChatRewardModel) -> Any:
    return np.concatenate([reward_model([prompt], [answer]) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)])


@pytest.mark.parametrize("pad_id", [None, 0, 1, 7, 279])
def test_a_score_is_that_of_the_text_alone_whatever_the_config_calls_padding(tmp_path: Path, pad_id: int | None) -> None:
    """Also where the pad id ends every text (1 is the end of a turn), and where it occurs within them."""
    wanted = one_by_one(load(write_reward_model(tmp_path / "plain")))
    folder = write_reward_model(tmp_path / "other")
    edit(folder / "config.json", pad_token_id=pad_id)
    found = load(folder)
    np.testing.assert_allclose(found(PROMPTS, ANSWERS), wanted, atol=1e-5)
    np.testing.assert_allclose(one_by_one(found), wanted, atol=1e-5)
    assert np.ptp(wanted) > 0.01


def test_a_tokenizer_without_padding_scores_texts_as_one_by_one(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "reward")
    edit(folder / "config.json", pad_token_id=None)
    edit(folder / "tokenizer_config.json", pad_token=None)
    reward_model = load(folder)
    assert reward_model.model.tokenizer.pad_token_id is None
    np.testing.assert_allclose(reward_model(PROMPTS, ANSWERS), one_by_one(reward_model), atol=1e-5)


def test_texts_over_the_context_lose_their_beginning_and_are_counted(tmp_path: Path) -> None:
    from transformers import Qwen2ForSequenceClassification

    folder = write_model(tmp_path / "reward", Qwen2ForSequenceClassification, context=32)
    logged: list[str] = []
    reward_model = load(folder, logged)
    long = "Human: " + "what is a cat? " * 12
    scores = reward_model([long] * 3, ["a cat is an animal.", "no", "DOG DOG"])
    assert len(set(scores.round(6))) == 3
    assert logged == [f"reward model {folder}: 3 of 3 texts so far are longer than 32 tokens and lose their beginning"]
    reward_model([long, "Human: a"], ["no", "no"])
    assert len(logged) == 1  # the next line comes when the count has doubled
    reward_model([long, long], ["no", "no"])
    assert logged[1:] == [f"reward model {folder}: 6 of 7 texts so far are longer than 32 tokens and lose their beginning"]
    ids = reward_model.model._encode([reward_model.render(long, "no")])[0]["input_ids"]
    assert len(ids) == 32 and ids == reward_model.model.tokenizer(reward_model.render(long, "no"))["input_ids"][-32:]


def write_encoder(folder: Path, kind: type[Any], config: Any) -> Path:
    """A classifier whose tokenizer writes [CLS] a [SEP] b [SEP]."""
    text = "Human Assistant : ? . what is a cat no at all an animal x 1"
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *dict.fromkeys(text.split())]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **special)
    fast.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    return folder


ENCODER = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER |= {"max_position_embeddings": 64, "initializer_range": 0.5, "num_labels": 1, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForSequenceClassification, BertConfig(**ENCODER)),
        (DebertaV2ForSequenceClassification, DebertaV2Config(**ENCODER, type_vocab_size=0, relative_attention=True)),
    ],
)
def test_an_encoder_scores_pairs_of_question_and_answer(tmp_path: Path, kind: type[Any], config: Any) -> None:
    folder = write_encoder(tmp_path / "reward", kind, config)
    reward_model = load(folder)
    assert reward_model.takes_pairs
    prompts = ["Human: what is a cat?", "Human: what", "Human: a\n\nAssistant: no\n\nHuman: what is a cat?"]
    scores = reward_model(prompts, ANSWERS)
    model, tokenizer = kind.from_pretrained(folder).eval(), reward_model.model.tokenizer
    for question, answer, score in zip(["what is a cat?", "what", prompts[2]], ANSWERS, scores, strict=True):
        with torch.no_grad():
            wanted = model(**tokenizer(question, answer, return_tensors="pt")).logits.item()
        assert score == pytest.approx(wanted, abs=1e-5)
    long = reward_model(["Human: " + "what is a cat? " * 9] * 2, ["a cat is an animal.", "no"])
    assert reward_model.model.num_cut == 2 and long[0] != long[1]
    (row,) = reward_model.model._encode([("what is a cat? " * 9, "a cat is an animal.")])
    assert len(row["input_ids"]) == 24 and tokenizer.decode(row["input_ids"]).endswith("[SEP] a cat is an animal . [SEP]")


def test_a_model_that_scores_a_text_by_its_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Qwen2ForSequenceClassification

    folder, forward = write_reward_model(tmp_path / "reward"), Qwen2ForSequenceClassification.forward

    def mixed(self: Any, input_ids: Any, attention_mask: Any = None, **given: Any) -> Any:
        out = forward(self, input_ids, attention_mask=attention_mask, **given)
        out.logits = out.logits - out.logits.mean()
        return out

    monkeypatch.setattr(Qwen2ForSequenceClassification, "forward", mixed)
    with pytest.raises(
        ConfigError, match=r"^key=.*/reward: a Qwen2ForSequenceClassification gives a text another score in a batch"
    ):
        load(folder)


def test_a_model_of_nan_loads(tmp_path: Path) -> None:
    """NaN weights are an error of the run, not of the check."""
    folder = write_reward_model(tmp_path / "reward")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "score.weight": weights["score.weight"] * torch.nan}, folder / "model.safetensors", {"format": "pt"})
    load(folder)
