"""Reward models for text: a neural classifier for training, and an independent linear model to measure over-optimization."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from rgpo.core.rollout import Array
from rgpo.errors import ConfigError, first_line, is_out_of_memory, require
from rgpo.language.assets import Log, log_line, require_finite_scores
from rgpo.language.data.dialogue import to_messages, to_text
from rgpo.language.data.template import apply_chat_template
from rgpo.language.policy.model_files import resolve_folder, version_of
from rgpo.language.policy.pretrained import context_length, load_model, load_pretrained, resolve_device
from rgpo.language.policy.rounding import LEAST, ROUNDING, UNITS, UNUSABLE, accepted, perturbed_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, list[int]]  # one text's tokenizer output
WORD = re.compile(r"[a-z0-9']+|[^\sa-z0-9]")


class Accuracy(TypedDict):
    """Share of pairs ranked correctly, its 95 % interval, and the number of pairs."""

    accuracy: float
    interval: list[float]  # [low, high]
    num_pairs: int


class RewardModel:
    """Scores (nats of preference) from a Hugging Face sequence classifier with one output.

    The model is a decoder, read at each text's last token, or an encoder, from a folder or the hub. A text's score must not
    depend on the other texts in its batch. special_tokens: add the tokenizer's special tokens to each text. Texts longer than the
    model's context are truncated at the beginning, which is logged for the first one and whenever their number has doubled.
    Raises: ConfigError as load_causal_lm, if there is more than one output, or if a text's score depends on its batch.
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
        log: Log = log_line,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        place, path = resolve_device(device), resolve_folder(key, str(folder))
        self.tokenizer: PreTrainedTokenizerBase = load_pretrained(key, path, AutoTokenizer, truncation_side="left")
        self.model = load_model(key, path, AutoModelForSequenceClassification, dtype, place)
        outputs = self.model.config.num_labels
        require(outputs == 1, key, folder, f"has {outputs} outputs; give a reward model with one.")
        self.version = version_of(path)
        self.name, self.batch_size, self.special_tokens, self.log = str(folder), batch_size, special_tokens, log
        self.max_tokens = min(self.tokenizer.model_max_length, context_length(self.model.config) or sys.maxsize)
        self.num_scored = self.num_cut = 0
        self._next_notice = 1
        self._check_batches(key)
        self.num_cut = 0

    def __call__(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> Array:
        """Scores (N,) of texts, or of pairs of texts; texts of similar length share a batch.

        Raises: NonFiniteError if a score is NaN or infinite.
        """
        import torch

        out = np.zeros(len(texts))
        inputs = self._encode(texts)
        order = sorted(range(len(texts)), key=lambda i: len(inputs[i]["input_ids"]))
        with torch.inference_mode():
            for start in range(0, len(order), self.batch_size):
                index = order[start : start + self.batch_size]
                out[index] = self._score([inputs[i] for i in index])
        self._notice(len(texts))
        return require_finite_scores(out, ["".join(text) for text in texts], self.name)

    def _encode(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Row]:
        """Encode each text; one that is too long is truncated at the beginning (of the first text, for a pair)."""
        if not texts:
            return []
        columns = [list(texts)] if isinstance(texts[0], str) else [list(column) for column in zip(*texts, strict=True)]
        options = {"add_special_tokens": self.special_tokens, "verbose": False}
        encoded = self.tokenizer(*columns, **options)
        rows: list[Row] = [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]
        for i, row in enumerate(rows):
            excess = len(row["input_ids"]) - self.max_tokens
            if excess > 0:
                parts = [column[i] for column in columns]
                first = len(self.tokenizer(parts[0], add_special_tokens=False, verbose=False)["input_ids"])
                side = "only_first" if first > excess else "longest_first"
                rows[i] = dict(self.tokenizer(*parts, **options, truncation=side, max_length=self.max_tokens))
                self.num_cut += 1
        return rows

    def _score(self, rows: Sequence[Row]) -> Array:
        """Scores of one batch; decoders read a row's last token other than the pad id, so padding uses an id found in no row."""
        import torch

        config = self.model.config.get_text_config()
        used = {i for row in rows for i in row["input_ids"]}
        preferred = [i for i in (config.pad_token_id, self.tokenizer.pad_token_id) if i is not None and i >= 0]
        config.pad_token_id = next(i for i in itertools.chain(preferred, itertools.count()) if i not in used)
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": config.pad_token_id}
        columns = {
            name: torch.tensor([[*row[name], *[fill.get(name, 0)] * (width - len(row[name]))] for row in rows])
            for name in rows[0]
        }
        given = accepted(self.model, **{name: column.to(self.model.device) for name, column in columns.items()}, use_cache=False)
        scores: Array = self.model(**given).logits[:, 0].double().cpu().numpy()
        return scores

    def _notice(self, num_texts: int) -> None:
        self.num_scored += num_texts
        if self.num_cut >= self._next_notice:
            self._next_notice = 2 * self.num_cut
            count = f"{self.num_cut} of {self.num_scored} texts so far"
            self.log(f"reward model {self.name}: {count} are longer than {self.max_tokens} tokens and lose their beginning")

    def _check_batches(self, key: str) -> None:
        """Raises: ConfigError if scores in a batch differ from those of single texts, or if the model cannot process text."""
        import torch

        words = "What is a cat ? A cat is an animal that sleeps all day and hunts at night ."
        rows = self._encode([words[:length] for length in (9, 16, len(words))])
        rows = [{name: ids[-self.max_tokens :] for name, ids in row.items()} for row in rows if row["input_ids"]]
        try:
            with torch.inference_mode():
                alone = np.concatenate([self._score([row]) for row in rows])
                together = self._score(rows)
                with perturbed_embeddings(self.model, self.model.dtype):
                    rounding = np.abs(np.concatenate([self._score([row]) for row in rows]) - alone)
        except UNUSABLE as error:
            if is_out_of_memory(error):
                raise
            name = type(self.model).__name__
            raise ConfigError(f"{key}={self.name}: a {name} cannot score a text ({first_line(error)}); give another.") from error
        gap = np.abs(together - alone)
        accepted_gap = np.maximum(LEAST, ROUNDING * rounding.max() + UNITS * torch.finfo(self.model.dtype).eps * np.abs(alone))
        wrong = gap > accepted_gap  # False for NaN, which raises an error during a run
        remedy = f"gives a text another score in a batch ({gap.max():.2g} off); give another reward model."
        require(not wrong.any(), key, self.name, f"a {type(self.model).__name__} {remedy}")


class ChatRewardModel:
    """A reward model's scores of exchanges, formatted with its chat template, as a pair of texts, or in HH-RLHF's format.

    Without a chat template, pairs are used for tokenizers with classification and separator tokens (BERT, DeBERTa), and HH-RLHF's
    format for all others.
    """

    def __init__(self, key: str, path_or_id: str, *, dtype: str, device: str, batch_size: int, log: Log = log_line) -> None:
        self.model = RewardModel(path_or_id, batch_size, key=key, dtype=dtype, device=device, log=log)
        tokenizer = self.model.tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.model.special_tokens = not self.has_template  # the template contains them
        separated = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        self.takes_pairs = separated and not self.has_template

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """Scores (N,).

        Raises: NonFiniteError if a score is NaN or infinite.
        """
        exchanges = list(zip(prompts, completions, strict=True))
        if self.takes_pairs:
            return self.model([(question(prompt), completion) for prompt, completion in exchanges])
        return self.model([self.render(*exchange) for exchange in exchanges])

    def render(self, prompt: str, completion: str) -> str:
        """The text that is scored."""
        if self.has_template:
            return apply_chat_template(self.model.tokenizer, to_messages(prompt, completion), answer_next=False)
        return f"\n\n{to_text(prompt)}\n\nAssistant: {completion}"


def question(prompt: str) -> str:
    """The first text of a pair: a single question without its speaker's name, or the whole dialogue."""
    messages = to_messages(prompt)
    return messages[0]["content"] if len(messages) == 1 else prompt


def text_features(text: str) -> Counter[str]:
    """Counts of words, pairs of adjacent words (a b) and substrings of 3 to 5 characters within a word (#abc)."""
    words = WORD.findall(text.lower())
    found = Counter(words)
    found.update(f"{a} {b}" for a, b in zip(["<", *words], [*words, ">"], strict=True))
    for word in words:
        padded = f"_{word}_"
        found.update(f"#{padded[i : i + n]}" for n in (3, 4, 5) for i in range(len(padded) - n + 1))
    return found


class GoldRewardModel:
    """Ridge regression of ratings (points, -4..4) on unit-length tf-idf features: score = mean + x . weight."""

    def __init__(self, folder: Path) -> None:
        vocabulary: list[str] = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        self.index = {feature: i for i, feature in enumerate(vocabulary)}
        with np.load(folder / "judge.npz", allow_pickle=False) as saved:
            self.idf: Array = saved["idf"]
            self.weight: Array = saved["weight"]
            self.mean = float(saved["mean"])

    def __call__(self, texts: Sequence[str]) -> Array:
        """Predicted ratings (N,); the mean for a text without known features."""
        score: Array = self.mean + tfidf([text_features(text) for text in texts], self.index, self.idf) @ self.weight
        return score


def tfidf(counts: Sequence[Counter[str]], index: dict[str, int], idf: Array) -> scipy.sparse.csr_array:
    """Sparse rows (N, F) of unit length with entries proportional to (1 + log count) idf."""
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
    """Fit argmin_w |X w - (rating - mean)|^2 + ridge |w|^2 on features found in at least two texts; save it as npz and json."""
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
    """Share of pairs with rating_i - rating_j >= margin for which score_i > score_j; ties count half.

    The interval covers 95 % of 1,000 bootstrap replicates over texts, because pairs share texts.
    """
    better = (rating[:, None] - rating[None, :] >= margin).astype(np.float32)
    right = better * (0.5 + 0.5 * np.sign(score[:, None] - score[None, :])).astype(np.float32)
    n = len(score)
    times = rng.multinomial(n, np.full(n, 1 / n), size=1000).astype(np.float32)  # how often each replicate draws each text
    shares = ((times @ right) * times).sum(1) / np.maximum(((times @ better) * times).sum(1), 1)
    num_pairs = int(better.sum())
    return {
        "accuracy": float(right.sum(dtype=np.float64) / max(num_pairs, 1)),
        "interval": np.quantile(shares, (0.025, 0.975)).tolist(),
        "num_pairs": num_pairs,
        "margin": margin,
    }
