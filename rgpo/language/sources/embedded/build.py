"""Build the embedded scale's artifacts from rated sentences: split, train or load trained weights, save, test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rgpo.core.rollout import Array
from rgpo.language.assets import Log
from rgpo.language.data.build_cache import BuildReport
from rgpo.language.policy.pretrained import quiet
from rgpo.language.rewards.reward_model import GoldRewardModel, RewardModel, pair_accuracy, train_gold_reward_model
from rgpo.language.sources.embedded import corpus, pretrained, training
from rgpo.language.sources.embedded.training import Recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_PROMPT_TOKENS = 8
NUM_SAMPLES, SAMPLE_TOKENS = 256, 32


def build(folder: Path, sentences: list[corpus.Sentence], recipe: Recipe, log: Log, from_scratch: bool = False) -> BuildReport:
    """Write model, reward_model, gold and prompts.json to a folder; returns the report.

    from_scratch: train even if the package includes the resulting weights.
    """
    parts = corpus.split(sentences, recipe.shares, recipe.seed)
    texts = {name: [sentence.text for sentence in part] for name, part in parts._asdict().items()}
    rng = np.random.default_rng(recipe.seed + 2)
    with training.reproducible(recipe.seed):
        tokenizer = training.train_tokenizer(texts["policy"] + texts["reward"] + texts["gold"], recipe.vocab_size)
        rows = {name: training.rows_of(tokenizer, part, recipe.max_tokens) for name, part in texts.items()}
        train_rows = rows["policy"] + rows["reward"] + rows["gold"]
        rating = ratings(parts.reward, 0)
        seen = pretrained.digest(train_rows, rows["reward"], rating, recipe)
        model = training.new_language_model(tokenizer.get_vocab_size(), recipe)
        if from_scratch or not pretrained.load(model, "model", seen):
            log("embedded scale: training the models, about two minutes on one core")
            training.fit_language_model(model, train_rows, recipe, log)
        reward_model = training.new_reward_model(model, recipe)
        if from_scratch or not pretrained.load(reward_model, "reward_model", seen):
            training.fit_reward_model(reward_model, rows["reward"], rating, recipe, log)
        with quiet():
            model.save_pretrained(folder / "model")
            reward_model.save_pretrained(folder / "reward_model")
        training.save_tokenizer(tokenizer, folder / "model", appends_eos=False)
        training.save_tokenizer(tokenizer, folder / "reward_model", appends_eos=True)
        train_gold_reward_model(texts["gold"], ratings(parts.gold, 1), recipe.gold_ridge, folder / "gold")

        prompts = make_prompts(texts["policy"], tokenizer, rng)
        known = set(prompts)
        heldout = [prompt for prompt in make_prompts(texts["heldout"], tokenizer, rng) if prompt not in known]
        saved = {"train": prompts, "heldout": heldout}
        (folder / "prompts.json").write_text(json.dumps(saved, ensure_ascii=False, indent=0), encoding="utf-8")
        samples = training.sample(model, tokenizer, heldout[:NUM_SAMPLES], SAMPLE_TOKENS)
        nats = training.mean_nats(model, rows["heldout"])
        accuracies = measure_accuracies(folder, parts.heldout, samples, recipe, rng)
    num_sentences = {name: len(part) for name, part in texts.items()}
    num_prompts = {name: len(part) for name, part in saved.items()}
    size = {"num_parameters": model.num_parameters(), "vocab_size": tokenizer.get_vocab_size(), "heldout_nats_per_token": nats}
    counts = {"num_sentences": num_sentences, "num_prompts": num_prompts}
    return {"training_digest": seen, **counts, "model": size, **accuracies, "samples": samples[:16]}


def ratings(sentences: Sequence[corpus.Sentence], half: int) -> Array:
    """Mean ratings (N,) by one half of the raters."""
    return np.array([corpus.mean_rating(sentence, half) for sentence in sentences])


def make_prompts(texts: Sequence[str], tokenizer: Tokenizer, rng: np.random.Generator) -> list[str]:
    """Distinct beginnings of texts, with 3 to 6 words and at most 8 tokens, followed by at least two more words."""
    found: dict[str, None] = {}
    for text in texts:
        words = text.split(" ")
        count = min(int(rng.integers(3, 7)), len(words) - 2)
        while count >= 3 and len(tokenizer.encode(" ".join(words[:count])).ids) > MAX_PROMPT_TOKENS:
            count -= 1
        if count >= 3:
            found[" ".join(words[:count])] = None
    return list(found)


def measure_accuracies(
    folder: Path, heldout: list[corpus.Sentence], samples: list[str], recipe: Recipe, rng: np.random.Generator
) -> BuildReport:
    """Held-out pair accuracies of both reward models and of the raters, and both models' scores on samples."""
    reward_model, gold_reward_model = RewardModel(folder / "reward_model"), GoldRewardModel(folder / "gold")
    texts = [sentence.text for sentence in heldout]
    score, gold = reward_model(texts), gold_reward_model(texts)
    sample_score, sample_gold = reward_model(samples), gold_reward_model(samples)
    half = [ratings(heldout, 0), ratings(heldout, 1)]
    return {
        "proxy": pair_accuracy(score, half[0], recipe.eval_margin, rng),
        "proxy_for_gold_raters": pair_accuracy(score, half[1], recipe.eval_margin, rng),
        "gold": pair_accuracy(gold, half[1], recipe.eval_margin, rng),
        "proxy_raters_for_gold_raters": pair_accuracy(half[0], half[1], recipe.eval_margin, rng),
        "proxy_gold_correlation": {
            "heldout": _correlation(score, gold),
            "samples": _correlation(sample_score, sample_gold),
        },
        "scores_of_samples": {
            "proxy": {"mean": sample_score.mean(), "std": sample_score.std()},
            "gold": {"mean": sample_gold.mean(), "std": sample_gold.std()},
        },
    }


def _correlation(x: Array, y: Array) -> float | None:
    """Pearson's correlation; None if either is constant."""
    return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else None
