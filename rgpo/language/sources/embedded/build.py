"""Build the embedded scale's world from rated sentences: split, train, save, judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rgpo.language.assets import Array
from rgpo.language.policy.pretrained import quiet
from rgpo.language.rewards.reward_model import GoldJudge, ProxyReward, pair_accuracy, train_gold
from rgpo.language.sources.embedded import corpus, training
from rgpo.language.sources.embedded.training import Recipe, Say

MAX_PROMPT_TOKENS = 8
NUM_SAMPLES, SAMPLE_TOKENS = 256, 32


def build(folder: Path, sentences: list[corpus.Sentence], recipe: Recipe, say: Say) -> dict[str, Any]:
    """Write model, reward_model, gold and prompts.json into folder; returns the report."""
    parts = corpus.split(sentences, recipe.shares, recipe.seed)
    texts = {name: [sentence.text for sentence in part] for name, part in parts._asdict().items()}
    rng = np.random.default_rng(recipe.seed + 2)
    with training.reproducible(recipe.seed):
        tokenizer = training.train_tokenizer(texts["policy"] + texts["reward"] + texts["gold"], recipe.vocab_size)
        rows = {name: training.rows_of(tokenizer, part, recipe.max_tokens) for name, part in texts.items()}
        read = rows["policy"] + rows["reward"] + rows["gold"]
        model = training.train_language_model(read, tokenizer.get_vocab_size(), recipe, say)
        proxy = training.train_reward_model(model, rows["reward"], ratings(parts.reward, 0), recipe, say)
        with quiet():
            model.save_pretrained(folder / "model")
            proxy.save_pretrained(folder / "reward_model")
        training.save_tokenizer(tokenizer, folder / "model", appends_eos=False)
        training.save_tokenizer(tokenizer, folder / "reward_model", appends_eos=True)
        train_gold(texts["gold"], ratings(parts.gold, 1), recipe.gold_ridge, folder / "gold")

        prompts = make_prompts(texts["policy"], tokenizer, rng)
        known = set(prompts)
        heldout = [prompt for prompt in make_prompts(texts["heldout"], tokenizer, rng) if prompt not in known]
        saved = {"train": prompts, "heldout": heldout}
        (folder / "prompts.json").write_text(json.dumps(saved, ensure_ascii=False, indent=0), encoding="utf-8")
        samples = training.sample(model, tokenizer, heldout[:NUM_SAMPLES], SAMPLE_TOKENS)
        nats = training.mean_nats(model, rows["heldout"])
        judged = judge(folder, parts.heldout, samples, recipe, rng)
    num_sentences = {name: len(part) for name, part in texts.items()}
    num_prompts = {name: len(part) for name, part in saved.items()}
    size = {"num_parameters": model.num_parameters(), "vocab_size": tokenizer.get_vocab_size(), "heldout_nats_per_token": nats}
    return {"num_sentences": num_sentences, "num_prompts": num_prompts, "model": size, **judged, "samples": samples[:16]}


def ratings(sentences: Sequence[corpus.Sentence], half: int) -> Array:
    """(N,) mean ratings by one half of the raters."""
    return np.array([corpus.mean_rating(sentence, half) for sentence in sentences])


def make_prompts(texts: Sequence[str], tokenizer: Any, rng: np.random.Generator) -> list[str]:
    """The distinct beginnings of texts, 3 to 6 words and at most 8 tokens long, that at least two more words follow."""
    found: dict[str, None] = {}
    for text in texts:
        words = text.split(" ")
        count = min(int(rng.integers(3, 7)), len(words) - 2)
        while count >= 3 and len(tokenizer.encode(" ".join(words[:count])).ids) > MAX_PROMPT_TOKENS:
            count -= 1
        if count >= 3:
            found[" ".join(words[:count])] = None
    return list(found)


def judge(
    folder: Path, heldout: list[corpus.Sentence], samples: list[str], recipe: Recipe, rng: np.random.Generator
) -> dict[str, Any]:
    """Held-out pair accuracies of proxy, gold judge and raters, and how proxy and gold judge score the model's samples."""
    proxy, gold = ProxyReward(folder / "reward_model"), GoldJudge(folder / "gold")
    texts = [sentence.text for sentence in heldout]
    by_proxy, by_gold = proxy(texts), gold(texts)
    sampled_proxy, sampled_gold = proxy(samples), gold(samples)
    half = [ratings(heldout, 0), ratings(heldout, 1)]
    return {
        "proxy": pair_accuracy(by_proxy, half[0], recipe.eval_margin, rng),
        "proxy_for_gold_raters": pair_accuracy(by_proxy, half[1], recipe.eval_margin, rng),
        "gold": pair_accuracy(by_gold, half[1], recipe.eval_margin, rng),
        "proxy_raters_for_gold_raters": pair_accuracy(half[0], half[1], recipe.eval_margin, rng),
        "proxy_gold_correlation": {
            "heldout": _correlation(by_proxy, by_gold),
            "samples": _correlation(sampled_proxy, sampled_gold),
        },
        "scores_of_samples": {
            "proxy": {"mean": sampled_proxy.mean(), "std": sampled_proxy.std()},
            "gold": {"mean": sampled_gold.mean(), "std": sampled_gold.std()},
        },
    }


def _correlation(x: Array, y: Array) -> float | None:
    """Pearson's r; None if either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else None
