"""Scale embedded: a small Qwen2 with prompts and reward models, built on first use from rated review sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rgpo.core.rollout import Array
from rgpo.errors import require
from rgpo.language.assets import LanguageAssets, Log, PreferencePair, Prompt
from rgpo.language.policy.pretrained import load_causal_lm, require_packages
from rgpo.paths import cache_dir

HELDOUT_SEED = 0  # held-out prompts are shuffled in the same way for every run


@dataclass(kw_only=True)
class Embedded:
    """The embedded source, which has no settings; its artifacts are in the folder RGPO_CACHE."""

    def check(self, reward_model: bool = True) -> None:
        """Check packages; the sentences are downloaded only when needed.

        Raises: ConfigError if a package is missing.
        """
        require_packages("task.source", "transformers", "tokenizers", "safetensors")

    def load(self, log: Log, reward_model: bool = True) -> LanguageAssets:
        """Load the artifacts, building them first if they are not in the cache.

        Raises: ConfigError if the cache is not writable or the sentences cannot be downloaded.
        """
        import numpy as np

        from rgpo.language.rewards.reward_model import GoldRewardModel, RewardModel
        from rgpo.language.sources.embedded.artifacts import load_artifacts

        artifacts = load_artifacts(cache_dir(), log)
        model, tokenizer = load_causal_lm(artifacts.model, dtype="float32", device="cpu")
        judge, gold_judge = RewardModel(artifacts.reward_model), GoldRewardModel(artifacts.gold_reward_model)
        order = np.random.default_rng(HELDOUT_SEED).permutation(len(artifacts.heldout_prompts))
        report = artifacts.report
        accuracies = ", ".join(
            f"{name} {report[key]['accuracy']:.1%} [{report[key]['interval'][0]:.1%}, {report[key]['interval'][1]:.1%}]"
            for name, key in (("reward model", "proxy"), ("gold reward model", "gold"))
        )
        log(f"{artifacts.folder.name}: {model.num_parameters():,} parameters; held-out pairs ranked correctly: {accuracies}")

        def encode(texts: list[str]) -> list[Prompt]:
            return [Prompt(text, ids) for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True)]

        def score(prompts: Sequence[str], completions: Sequence[str]) -> Array:
            return judge([a + b for a, b in zip(prompts, completions, strict=True)])

        def score_gold(prompts: Sequence[str], completions: Sequence[str]) -> Array:
            return gold_judge([a + b for a, b in zip(prompts, completions, strict=True)])

        train_prompts = encode(artifacts.train_prompts)

        @cache
        def preference_pairs(max_new_tokens: int) -> Sequence[PreferencePair]:
            from rgpo.language.sources.embedded.pairs import sample_pairs

            log("embedded scale: sampling preference pairs, under a minute")
            return sample_pairs(artifacts.model, train_prompts, score, max_new_tokens)

        require(tokenizer.eos_token_id != tokenizer.pad_token_id, "task.source", "embedded", "its cache is damaged; delete it.")
        return LanguageAssets(
            model=model,
            tokenizer=tokenizer,
            eos_id=int(tokenizer.eos_token_id),
            pad_id=int(tokenizer.pad_token_id),
            train_prompts=train_prompts,
            heldout_prompts=encode([artifacts.heldout_prompts[i] for i in order]),
            num_dropped=0,
            reward_model=score if reward_model else None,
            gold_reward_model=score_gold if reward_model else None,
            preference_pairs=preference_pairs,
            versions={"embedded": report["fingerprint"]},
        )
