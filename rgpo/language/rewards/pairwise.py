"""Two judges from pairs of answers: a Bradley-Terry head on a frozen model's features, and an independent linear one on words.

Names: N exchanges (prompt, completion), P pairs, H hidden size. The head is the proxy that a policy learns from; no policy sees
the gold judge. They learn from disjoint dialogues and are measured on pairs that neither has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rgpo.language.assets import Array, Say, require_finite_scores
from rgpo.language.data.chat import chat
from rgpo.language.data.hh_rlhf import Pair, messages
from rgpo.language.policy.pretrained import load, load_model, pick_device
from rgpo.language.rewards.reward_model import GoldJudge, train_gold


class Features:
    """Mean hidden state of a completion's tokens and eos after the first num_layers layers of a causal language model.

    Of a prompt the last max_tokens are read, of a completion the first.
    """

    def __init__(self, folder: Path, *, num_layers: int, max_tokens: int, device: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        key = "task.source.reward_layers"
        self.tokenizer: Any = load(key, folder, AutoTokenizer)
        self.model: Any = load_model(key, folder, AutoModel, "float32", pick_device(device), num_hidden_layers=num_layers)
        self.max_tokens = max_tokens
        self.model.norm = torch.nn.Identity()  # the final norm belongs to the last layer, not to this one

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """(N, H); a prompt that occurs many times is read once."""
        import torch

        out = np.zeros((len(prompts), self.model.config.hidden_size))
        same: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            same.setdefault(prompt, []).append(i)
        with torch.inference_mode():
            for prompt, index in same.items():
                out[index] = self._of_one_prompt(prompt, [completions[i] for i in index])
        return out

    def _of_one_prompt(self, prompt: str, completions: list[str]) -> Array:
        import torch
        from transformers import DynamicCache

        words = chat(self.tokenizer, messages(prompt), answer_next=True)
        before = self.tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"][-self.max_tokens :]
        answers = self.tokenizer(completions, add_special_tokens=False, verbose=False)["input_ids"]
        rows = [torch.tensor([*answer[: self.max_tokens], self.tokenizer.eos_token_id]) for answer in answers]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        real = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        mask = torch.cat([torch.ones(len(rows), len(before), dtype=torch.bool), real], 1).long()
        ids, real, mask = (x.to(self.model.device) for x in (ids, real, mask))
        cache = DynamicCache(config=self.model.config)
        self.model(input_ids=torch.tensor([before], device=self.model.device), past_key_values=cache)
        cache.batch_repeat_interleave(len(rows))
        hidden = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache).last_hidden_state.double()
        mean: Array = ((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True)).cpu().numpy()
        return mean


def read_features(features: Features, pairs: Sequence[Pair], say: Say, what: str) -> Array:
    """(P, 2, H) features of each pair's chosen and rejected answer; says how far it is."""
    out = []
    for i, pair in enumerate(pairs):
        if i % 200 == 0:
            say(f"{what}: {i} of {len(pairs)} pairs read")
        out.append(features([pair.prompt] * 2, [pair.chosen, pair.rejected]))
    return np.stack(out)


def train_head(features_P2H: Array, l2: float, folder: Path) -> None:
    """Save mean m, scale s (H,) and w = argmin sum_P -log sigmoid(w . (z_chosen - z_rejected)) + l2/2 |w|^2, z = (x - m) / s."""
    flat = features_P2H.reshape(-1, features_P2H.shape[-1])
    mean, scale = flat.mean(0), flat.std(0) + 1e-6
    gap = (features_P2H[:, 0] - features_P2H[:, 1]) / scale

    def loss(weight: Array) -> tuple[float, Array]:
        margin = gap @ weight
        value = float(np.logaddexp(0, -margin).sum() + 0.5 * l2 * weight @ weight)
        return value, l2 * weight - expit(-margin) @ gap

    weight = minimize(loss, np.zeros(len(mean)), jac=True, method="L-BFGS-B").x
    np.savez(folder / "head.npz", mean=mean, scale=scale, weight=weight)


class Head:
    """w . (x - m) / s in nats of preference."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "head.npz", allow_pickle=False) as saved:
            self.mean, self.scale, self.weight = (saved[name] for name in ("mean", "scale", "weight"))

    def __call__(self, features_NH: Array) -> Array:
        """(N,) scores."""
        score: Array = (features_NH - self.mean) / self.scale @ self.weight
        return score


class Proxy:
    """Head over features. NonFiniteError for NaN."""

    def __init__(self, features: Features, head: Head) -> None:
        self.features, self.head = features, head

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """(N,) scores."""
        return require_finite_scores(self.head(self.features(prompts, completions)), completions, "the reward head")


class Gold:
    """The gold judge reads an answer without its prompt."""

    def __init__(self, folder: Path) -> None:
        self.judge = GoldJudge(folder)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """(N,) scores, about -1 (rejected) to 1 (chosen)."""
        return self.judge(completions)


def train_gold_on_pairs(pairs: Sequence[Pair], ridge: float, folder: Path) -> None:
    """Ridge regression of 1 for chosen and -1 for rejected answers on tf-idf features."""
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    train_gold(answers, np.tile([1.0, -1.0], len(pairs)), ridge, folder)


def share_right(margin_P: Array) -> dict[str, Any]:
    """Share of pairs with a positive margin, ties half, and its 95 % interval (Wilson's score interval)."""
    n, z = len(margin_P), 1.96
    share = float((0.5 + 0.5 * np.sign(margin_P)).mean())
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return {"accuracy": share, "interval": [centre - half, centre + half], "num_pairs": n}
