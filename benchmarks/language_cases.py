"""Models, prompts, reward and iteration sizes for benchmarks/language.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """The settings shared by both contestants."""

    num_prompts: int  # per iteration
    group_size: int
    max_new_tokens: int
    prompts: list[str]
    lora: dict[str, Any] | None
    lr: float
    micro_batch_size: int  # completions per forward pass, ours only
    warm_up: int  # iterations before the measurement
    iterations: int  # total, including the warm-up


SENTENCE = "I have a friend who says that most people do not know how to ask for help when they need it the most"


def tiny_case(group_size: int, max_new_tokens: int, words: int = 8) -> Case:
    """32 completions per iteration from a random Qwen2 with 0.15 M parameters; words: per prompt, about four tokens each."""
    return Case(
        num_prompts=32 // group_size,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        prompts=[" ".join(f"w{(31 * i + 7 * j) % 2000}" for j in range(words)) for i in range(64)],
        lora=None,
        lr=1e-3,
        micro_batch_size=32,
        warm_up=2,
        iterations=2 + max(2, 640 // max_new_tokens),
    )


def smollm2_case(max_new_tokens: int) -> Case:
    """Prompts of 40 to 80 tokens; HH-RLHF's harmless prompts under the chat template have 33 to 96, 55 on average."""
    return Case(
        num_prompts=4,
        group_size=4,
        max_new_tokens=max_new_tokens,
        prompts=[" ".join((SENTENCE.split() * 5)[i : i + 40 + 8 * (i % 6)]) for i in range(24)],
        lora={"rank": 16, "alpha": 32.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        lr=2e-4,
        micro_batch_size=8,
        warm_up=1,
        iterations=3,
    )


CASES = {
    **{f"tiny_{t}x{g}": tiny_case(g, t) for t in (32, 128, 512) for g in (4, 16, 32)},
    **{f"prompt_{g}": tiny_case(g, 32, words=64) for g in (4, 16)},
    **{name: smollm2_case(tokens) for name, tokens in (("smollm2", 32), ("smollm2_256", 256))},
}


def find_model(name: str, folder: Path) -> Path:
    """The case's checkpoint: SmolLM2 as downloaded and converted by rgpo, or the tiny model, written to folder."""
    if name.startswith("smollm2"):
        from rgpo.language.sources.smollm2 import convert
        from rgpo.paths import cache_dir

        return convert(cache_dir(), print)
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rgpo.language.sources.embedded.training import save_tokenizer, train_tokenizer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    save_tokenizer(train_tokenizer([" ".join(f"w{i}" for i in range(2000))], 1024), folder / "model", appends_eos=False)
    return folder / "model"


def score(completion: str) -> float:
    """Share of the completion's characters with an even code point."""
    return sum(ord(character) % 2 == 0 for character in completion) / max(len(completion), 1)
