"""Tiny Qwen2 checkpoints with random weights in exactly the format of real ones, and assets around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification

from rgpo.language.assets import LanguageAssets, PreferencePair, Prompt
from rgpo.language.sources.embedded.training import save_tokenizer, train_tokenizer

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_model(
    folder: Path, kind: Any = Qwen2ForCausalLM, template: str | None = TEMPLATE, context: int = 64, seed: int = 0
) -> Path:
    """config.json, generation_config.json, model.safetensors and tokenizer files of a model with 16 hidden units."""
    tokenizer = train_tokenizer(["Human: what is a cat? Assistant: a cat is an animal."], 280)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder, appends_eos=False)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_reward_model(folder: Path, template: str | None = TEMPLATE, seed: int = 1) -> Path:
    """A sequence classifier with one output."""
    return write_model(folder, Qwen2ForSequenceClassification, template, context=256, seed=seed)


def make_assets(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    pairs: Sequence[tuple[int, list[int], list[int]]] = (),
    **changes: Any,
) -> LanguageAssets:
    """Assets whose prompts are token ids, for training and held out; pairs: (index of the prompt, chosen ids, rejected ids).

    The reward is a text's length.
    """
    made = [Prompt(f"prompt {i}", ids) for i, ids in enumerate(prompts)]
    stored = [PreferencePair(made[i], chosen, rejected) for i, chosen, rejected in pairs]
    parts: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "eos_id": 1,
        "pad_id": 0,
        "train_prompts": made,
        "heldout_prompts": made,
        "num_dropped": 0,
        "reward_model": lambda prompts, texts: np.array([float(len(text)) for text in texts]),
        "gold_reward_model": None,
        "preference_pairs": lambda max_new_tokens: stored,
    }
    return LanguageAssets(**(parts | changes))
