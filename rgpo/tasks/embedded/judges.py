"""Who scores a text: the proxy reward model that a policy may see, and the gold judge that it never sees."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import scipy.sparse.linalg

from rgpo.errors import ConfigError

Array = npt.NDArray[np.float64]

WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9]")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep Hugging Face from drawing progress bars while files of a megabyte are read or written."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class ProxyReward:
    """Scores (nats of preference) of a Hugging Face sequence classifier with one output, read at each text's last token.

    ConfigError if the folder holds no such model or no padding token.
    """

    def __init__(self, folder: Path, batch_size: int = 64) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            with no_progress_bars():
                tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
                model: Any = AutoModelForSequenceClassification.from_pretrained(
                    folder, local_files_only=True, dtype=torch.float32
                )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"reward_model={folder}: needs a folder with a Hugging Face model and tokenizer ({str(error).splitlines()[0]})."
            ) from error
        outputs, padding = model.config.num_labels, (model.config.pad_token_id, tokenizer.pad_token_id)
        if outputs != 1 or None in padding:
            raise ConfigError(
                f"reward_model={folder}: needs one output and a padding token in config and tokenizer, "
                f"but has {outputs} outputs and padding tokens {padding}."
            )
        self.tokenizer, self.model = tokenizer, model
        self.model.eval()
        self.batch_size = batch_size
        self.max_tokens = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    def __call__(self, texts: Sequence[str]) -> Array:
        """(N,) scores; texts of about equal length share a batch, and one longer than the model's context is cut."""
        import torch

        out = np.zeros(len(texts))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                index = order[start : start + self.batch_size]
                inputs = self.tokenizer(
                    [texts[i] for i in index], padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
                )
                inputs.pop("token_type_ids", None)
                out[index] = self.model(**inputs, use_cache=False).logits[:, 0].double().numpy()
        return out


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
