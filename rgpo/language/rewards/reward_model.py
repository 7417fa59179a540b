"""Who scores a text: the proxy reward model that a policy may see, and the gold judge that it never sees."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from rgpo.errors import require
from rgpo.language.assets import Array, require_finite_scores
from rgpo.language.policy.pretrained import load, load_model, pick_device, resolve

WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9]")


class ProxyReward:
    """Scores (nats of preference) of a Hugging Face sequence classifier with one output, read at each text's last token.

    From a folder or the hub; special_tokens adds the tokenizer's own to a text. ConfigError for what load_causal_lm refuses,
    for another number of outputs and where the tokenizer has no padding token.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 64,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
        special_tokens: bool = True,
        key: str = "reward_model",
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        place, path = pick_device(device), resolve(key, str(folder), trust_remote_code)
        self.tokenizer: Any = load(key, path, AutoTokenizer, padding_side="right", trust_remote_code=trust_remote_code)
        auto = AutoModelForSequenceClassification
        self.model: Any = load_model(key, path, auto, dtype, place, trust_remote_code=trust_remote_code)
        config = self.model.config
        outputs, padding = config.num_labels, self.tokenizer.pad_token_id
        require(outputs == 1, key, folder, f"needs one output, but has {outputs}.")
        require(padding is not None, key, folder, "needs a padding token in its tokenizer.")
        if config.pad_token_id is None:
            config.pad_token_id = padding  # by it the model finds the last token
        config.use_cache = False
        self.name, self.batch_size, self.special_tokens = str(folder), batch_size, special_tokens
        self.max_tokens = min(self.tokenizer.model_max_length, config.max_position_embeddings)

    def __call__(self, texts: Sequence[str]) -> Array:
        """(N,) scores; texts of about equal length share a batch, and one longer than the model's context is cut.

        NonFiniteError for NaN or an infinite score.
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


def features(text: str) -> Counter[str]:
    """Counts of a text's words, pairs of neighbouring words (a b) and pieces of 3 to 5 letters inside a word (#abc)."""
    words = WORD.findall(text.lower())
    found = Counter(words)
    found.update(f"{a} {b}" for a, b in zip(["<", *words], [*words, ">"], strict=True))
    for word in words:
        edged = f"_{word}_"
        found.update(f"#{edged[i : i + n]}" for n in (3, 4, 5) for i in range(len(edged) - n + 1))
    return found


class GoldJudge:
    """Ridge regression of a rating (points, -4..4) on tf-idf features of unit length: score = mean + x . weight."""

    def __init__(self, folder: Path) -> None:
        vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.index = {feature: i for i, feature in enumerate(vocabulary)}
        with np.load(folder / "judge.npz", allow_pickle=False) as saved:
            self.idf: Array = saved["idf"]
            self.weight: Array = saved["weight"]
            self.mean = float(saved["mean"])

    def __call__(self, texts: Sequence[str]) -> Array:
        """(N,) predicted ratings; a text without a known feature gets the mean."""
        score: Array = self.mean + tfidf([features(text) for text in texts], self.index, self.idf) @ self.weight
        return score


def tfidf(counts: Sequence[Counter[str]], index: dict[str, int], idf: Array) -> Any:
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


def train_gold(texts: Sequence[str], rating: Array, ridge: float, folder: Path) -> None:
    """Fit features that two texts share, argmin |X w - (rating - mean)|^2 + ridge |w|^2, and save it as npz and json."""
    counts = [features(text) for text in texts]
    document_frequency = Counter(feature for found in counts for feature in found)
    vocabulary = sorted(feature for feature, number in document_frequency.items() if number > 1)
    index = {feature: i for i, feature in enumerate(vocabulary)}
    idf = 1 + np.log((1 + len(texts)) / (1 + np.array([document_frequency[feature] for feature in vocabulary])))
    mean = float(rating.mean())
    weight = scipy.sparse.linalg.lsqr(tfidf(counts, index, idf), rating - mean, damp=float(np.sqrt(ridge)), iter_lim=200)[0]
    folder.mkdir(parents=True)
    np.savez(folder / "judge.npz", idf=idf, weight=weight, mean=mean)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")


def pair_accuracy(score: Array, rating: Array, margin: float, rng: np.random.Generator) -> dict[str, Any]:
    """Share of the pairs with rating_i - rating_j >= margin that have score_i > score_j; ties count half.

    The interval holds 95 % of 1,000 bootstrap replicates over texts, since pairs share texts.
    """
    better = (rating[:, None] - rating[None, :] >= margin).astype(np.float32)
    right = better * (0.5 + 0.5 * np.sign(score[:, None] - score[None, :])).astype(np.float32)
    n = len(score)
    times = rng.multinomial(n, np.full(n, 1 / n), size=1000).astype(np.float32)  # how often a replicate draws each text
    shares = ((times @ right) * times).sum(1) / np.maximum(((times @ better) * times).sum(1), 1)
    num_pairs = int(better.sum())
    return {
        "accuracy": float(right.sum(dtype=np.float64) / max(num_pairs, 1)),
        "interval": np.quantile(shares, (0.025, 0.975)).tolist(),
        "num_pairs": num_pairs,
        "margin": margin,
    }
