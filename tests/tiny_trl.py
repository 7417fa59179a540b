"""A tiny Qwen2, its tokenizer and a reward for the tests of rgpo.engines.trl; words w0 ... w31, w1 ends a completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers

VOCABULARY, GROUP = 32, 4
PROMPTS = ["w3 w4 w5", "w6 w7", "w8 w9 w10 w11", "w12"]
PINNED = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "num_generations": GROUP,
    "num_iterations": 2,
    "max_completion_length": 6,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "seed": 0,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}


def tokenizer(size: int = VOCABULARY) -> Any:
    """A tokenizer of the words w0, w1 ..., split at spaces."""
    words = {f"w{i}": i for i in range(size)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="w0", eos_token="w1", unk_token="w2", padding_side="left"
    )


def model(size: int = VOCABULARY, hidden: int = 16, intermediate: int = 16, layers: int = 1, context: int = 32) -> Any:
    """A random Qwen2 whose distributions are far from uniform."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return transformers.Qwen2ForCausalLM(config)


def save_model(folder: Path) -> str:
    model().save_pretrained(folder)
    return str(folder)


def reward(completions: list[str], **_: Any) -> list[float]:
    """Share of even words."""
    return [sum(int(word[1:]) % 2 == 0 for word in text.split()) / 6 for text in completions]


def prompts(count: int = 64) -> Any:
    return datasets.Dataset.from_dict({"prompt": (PROMPTS * count)[:count]})
