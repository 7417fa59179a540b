"""Reward models of a text: a neural classifier to train on, and an independent linear one to measure over-optimization."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from rgpo.core.rollout import Array
from rgpo.errors import require
from rgpo.language.assets import require_finite_scores
from rgpo.language.data.chat import apply_chat_template
from rgpo.language.data.hh_rlhf import to_messages
from rgpo.language.policy.model_files import commit_of, resolve_folder
from rgpo.language.policy.pretrained import load_model, load_pretrained, resolve_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9]")


class Accuracy(TypedDict):
    """Share of pairs ranked correctly, its 95 % interval, and the number of pairs."""

    accuracy: float
    interval: list[float]  # [low, high]
    num_pairs: int


class RewardModel:
    """Scores (nats of preference) of a Hugging Face sequence classifier with one output, read at each text's last token.

    Loaded from a folder or the hub; special_tokens adds the tokenizer's special tokens to each text.
    Raises: ConfigError as load_causal_lm does, if there is more than one output, or if the tokenizer has no padding token.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 64,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        special_tokens: bool = True,
        key: str = "reward_model",
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        place, path = resolve_device(device), resolve_folder(key, str(folder))
        self.tokenizer: PreTrainedTokenizerBase = load_pretrained(key, path, AutoTokenizer, padding_side="right")
        self.model = load_model(key, path, AutoModelForSequenceClassification, dtype, place)
        config = self.model.config
        outputs, padding = config.num_labels, self.tokenizer.pad_token_id
        require(outputs == 1, key, folder, f"has {outputs} outputs; give a reward model with one.")
        require(padding is not None, key, folder, "its tokenizer has no padding token; give one that has.")
        if config.pad_token_id is None:
            config.pad_token_id = padding  # the model finds the last token by it
        config.use_cache = False
        self.commit = commit_of(path)
        self.name, self.batch_size, self.special_tokens = str(folder), batch_size, special_tokens
        self.max_tokens = min(self.tokenizer.model_max_length, config.max_position_embeddings)

    def __call__(self, texts: Sequence[str]) -> Array:
        """Scores (N,); texts of similar length share a batch, and texts longer than the model's context are cut.

        Raises: NonFiniteError if a score is NaN or infinite.
        """
        import torch

        out = np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        options = {"padding": True, "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                index = order[start : start + self.batch_size]
                batch = [texts[i] for i in index]
                inputs = self.tokenizer(batch, add_special_tokens=self.special_tokens, **options).to(self.model.device)
                inputs.pop("token_type_ids", None)
                out[index] = self.model(**inputs).logits[:, 0].double().cpu().numpy()
        return require_finite_scores(out, texts, self.name)


class ChatRewardModel:
    """A reward model's scores of exchanges under its own chat template, or in HH-RLHF's format if it has none."""

    def __init__(self, key: str, path_or_id: str, *, dtype: str, device: str, batch_size: int) -> None:
        self.model = RewardModel(path_or_id, batch_size, key=key, dtype=dtype, device=device)
        self.has_template = bool(self.model.tokenizer.chat_template)
        self.model.special_tokens = not self.has_template  # a template contains them

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """Scores (N,).

        Raises: NonFiniteError if a score is NaN or infinite.
        """
        return self.model([self.render(*exchange) for exchange in zip(prompts, completions, strict=True)])

    def render(self, prompt: str, completion: str) -> str:
        """The text that is scored."""
        if self.has_template:
            return apply_chat_template(self.model.tokenizer, to_messages(prompt, completion), answer_next=False)
        return f"\n\n{prompt}\n\nAssistant: {completion}"


def text_features(text: str) -> Counter[str]:
    """Counts of words, pairs of adjacent words (a b) and substrings of 3 to 5 letters within a word (#abc)."""
    words = WORD.findall(text.lower())
    found = Counter(words)
    found.update(f"{a} {b}" for a, b in zip(["<", *words], [*words, ">"], strict=True))
    for word in words:
        padded = f"_{word}_"
        found.update(f"#{padded[i : i + n]}" for n in (3, 4, 5) for i in range(len(padded) - n + 1))
    return found


class GoldRewardModel:
    """Ridge regression of a rating (points, -4..4) on tf-idf features of unit length: score = mean + x . weight."""

    def __init__(self, folder: Path) -> None:
        vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.index = {feature: i for i, feature in enumerate(vocabulary)}
        with np.load(folder / "judge.npz", allow_pickle=False) as saved:
            self.idf: Array = saved["idf"]
            self.weight: Array = saved["weight"]
            self.mean = float(saved["mean"])

    def __call__(self, texts: Sequence[str]) -> Array:
        """Predicted ratings (N,); the mean for a text without any known feature."""
        score: Array = self.mean + tfidf([text_features(text) for text in texts], self.index, self.idf) @ self.weight
        return score


def tfidf(counts: Sequence[Counter[str]], index: dict[str, int], idf: Array) -> scipy.sparse.csr_array:
    """(N, F) sparse rows of unit length: (1 + log count) idf."""
    rows, columns, values = [], [], []
    for row, found in enumerate(counts):
        for feature, count in found.items():
            column = index.get(feature)
            if column is not None:
                rows.append(row)
                columns.append(column)
                values.append((1 + np.log(count)) * idf[column])
    matrix = scipy.sparse.csr_array((values, (rows, columns)), shape=(len(counts), len(idf)), dtype=np.float64)
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).reshape(-1))
    return scipy.sparse.diags_array(1 / np.maximum(length, 1e-12)) @ matrix


def train_gold_reward_model(texts: Sequence[str], rating: Array, ridge: float, folder: Path) -> None:
    """Fit argmin_w |X w - (rating - mean)|^2 + ridge |w|^2 on features that occur in two texts, and save it as npz and json."""
    counts = [text_features(text) for text in texts]
    document_frequency = Counter(feature for found in counts for feature in found)
    vocabulary = sorted(feature for feature, number in document_frequency.items() if number > 1)
    index = {feature: i for i, feature in enumerate(vocabulary)}
    idf = 1 + np.log((1 + len(texts)) / (1 + np.array([document_frequency[feature] for feature in vocabulary])))
    mean = float(rating.mean())
    weight = scipy.sparse.linalg.lsqr(tfidf(counts, index, idf), rating - mean, damp=float(np.sqrt(ridge)), iter_lim=200)[0]
    folder.mkdir(parents=True)
    np.savez(folder / "judge.npz", idf=idf, weight=weight, mean=mean)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")


class MarginAccuracy(Accuracy):
    """Accuracy over the pairs whose ratings differ by at least a margin."""

    margin: float


def pair_accuracy(score: Array, rating: Array, margin: float, rng: np.random.Generator) -> MarginAccuracy:
    """Share of the pairs with rating_i - rating_j >= margin that have score_i > score_j; ties count half.

    The interval covers 95 % of 1,000 bootstrap replicates over texts, because pairs share texts.
    """
    better = (rating[:, None] - rating[None, :] >= margin).astype(np.float32)
    right = better * (0.5 + 0.5 * np.sign(score[:, None] - score[None, :])).astype(np.float32)
    n = len(score)
    times = rng.multinomial(n, np.full(n, 1 / n), size=1000).astype(np.float32)  # that each replicate draws each text
    shares = ((times @ right) * times).sum(1) / np.maximum(((times @ better) * times).sum(1), 1)
    num_pairs = int(better.sum())
    return {
        "accuracy": float(right.sum(dtype=np.float64) / max(num_pairs, 1)),
        "interval": np.quantile(shares, (0.025, 0.975)).tolist(),
        "num_pairs": num_pairs,
        "margin": margin,
    }
