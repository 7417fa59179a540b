"""Scale embedded: a small Qwen2 with its prompts and judges, built on this machine from rated review sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rgpo.errors import require
from rgpo.language.assets import Array, Materials, Prompt, Say
from rgpo.language.policy.pretrained import load_causal_lm, require_packages
from rgpo.paths import cache_dir

HELDOUT_SEED = 0  # the held-out prompts are shuffled once, the same way for every run


@dataclass(kw_only=True)
class Embedded:
    """A source without knobs; RGPO_CACHE says where its world lies."""

    def check(self) -> None:
        """Packages only; the sentences are fetched when they are needed. ConfigError."""
        require_packages("task.source", "transformers", "tokenizers", "safetensors")

    def load(self, say: Say) -> Materials:
        """Build the world if the cache has none, and load it. ConfigError."""
        import numpy as np

        from rgpo.language.sources.embedded.artifacts import GoldJudge, ProxyReward, load_world

        world = load_world(cache_dir(), say)
        model, tokenizer = load_causal_lm(world.model, dtype="float32", device="cpu")
        proxy, gold = ProxyReward(world.reward_model), GoldJudge(world.gold)
        order = np.random.default_rng(HELDOUT_SEED).permutation(len(world.heldout_prompts))
        heldout = [world.heldout_prompts[i] for i in order]
        say(
            f"embedded world {world.folder.name}: {model.num_parameters():,} parameters; held-out pairs right: "
            + ", ".join(f"{name} {_percent(world.report[key])}" for name, key in (("proxy", "proxy"), ("gold judge", "gold")))
        )

        def encode(texts: list[str]) -> list[Prompt]:
            return [Prompt(text, ids) for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True)]

        def score_proxy(prompts: Sequence[str], completions: Sequence[str]) -> Array:
            return proxy([a + b for a, b in zip(prompts, completions, strict=True)])

        def score_gold(prompts: Sequence[str], completions: Sequence[str]) -> Array:
            return gold([a + b for a, b in zip(prompts, completions, strict=True)])

        require(tokenizer.eos_token_id != tokenizer.pad_token_id, "task.source", "embedded", "its cache is damaged, delete it.")
        return Materials(
            model=model,
            tokenizer=tokenizer,
            eos_id=int(tokenizer.eos_token_id),
            pad_id=int(tokenizer.pad_token_id),
            train_prompts=encode(world.train_prompts),
            heldout_prompts=encode(heldout),
            num_dropped=0,
            proxy=score_proxy,
            gold=score_gold,
        )


def _percent(found: Any) -> str:
    low, high = found["interval"]
    return f"{found['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
