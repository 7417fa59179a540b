"""Pairwise reward models: a Bradley-Terry head on a frozen model's features, and an independent linear model on words.

Legend: N exchanges (prompt, completion), P pairs, H hidden size. The policy is trained with the head; the gold reward model is
used only for evaluation. They are trained on disjoint dialogues and tested on pairs seen by neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from rgpo.core.rollout import Array
from rgpo.language.assets import Log, require_finite_scores
from rgpo.language.data.chat import tokenize
from rgpo.language.data.dialogue import Pair, to_messages
from rgpo.language.data.template import apply_chat_template
from rgpo.language.policy.pretrained import load_model, load_pretrained, resolve_device
from rgpo.language.rewards.reward_model import Accuracy, GoldRewardModel, train_gold_reward_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CompletionFeatures:
    """Mean hidden state over a completion's tokens and eos, after the first num_layers layers of a causal language model.

    Only the last max_tokens of a prompt and the first max_tokens of a completion are used.
    """

    def __init__(self, folder: Path, *, num_layers: int, max_tokens: int, device: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        key = "task.source.reward_layers"
        self.tokenizer: PreTrainedTokenizerBase = load_pretrained(key, folder, AutoTokenizer)
        self.model = load_model(key, folder, AutoModel, "float32", resolve_device(device), num_hidden_layers=num_layers)
        self.max_tokens = max_tokens
        self.model.norm = torch.nn.Identity()  # the final norm is meant for the last layer's output only

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """Features (N, H); a repeated prompt is processed once."""
        import torch

        out = np.zeros((len(prompts), self.model.config.hidden_size))
        rows_of_prompt: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            rows_of_prompt.setdefault(prompt, []).append(i)
        with torch.inference_mode():
            for prompt, index in rows_of_prompt.items():
                out[index] = self._of_one_prompt(prompt, [completions[i] for i in index])
        return out

    def _of_one_prompt(self, prompt: str, completions: list[str]) -> Array:
        import torch
        from transformers import DynamicCache

        text = apply_chat_template(self.tokenizer, to_messages(prompt), answer_next=True)
        before = tokenize(self.tokenizer, [text])[0][-self.max_tokens :]
        answers = tokenize(self.tokenizer, completions)
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


def compute_features(features: CompletionFeatures, pairs: Sequence[Pair], log: Log, what: str) -> Array:
    """Features (P, 2, H) of each pair's chosen and rejected answer; logs progress."""
    out = []
    for i, pair in enumerate(pairs):
        if i % 200 == 0:
            log(f"{what}: {i} of {len(pairs)} pairs done")
        out.append(features([pair.prompt] * 2, answers_of(pair)))
    return np.stack(out)


def answers_of(pair: Pair) -> list[str]:
    """The chosen and the rejected answer of a pair that has both."""
    assert pair.chosen is not None and pair.rejected is not None
    return [pair.chosen, pair.rejected]


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


class RewardHead:
    """Linear reward w . (x - m) / s, in nats of preference."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "head.npz", allow_pickle=False) as saved:
            self.mean, self.scale, self.weight = (saved[name] for name in ("mean", "scale", "weight"))

    def __call__(self, features_NH: Array) -> Array:
        """Scores (N,)."""
        score: Array = (features_NH - self.mean) / self.scale @ self.weight
        return score


class PairwiseRewardModel:
    """Reward model that applies a RewardHead to CompletionFeatures."""

    def __init__(self, features: CompletionFeatures, head: RewardHead) -> None:
        self.features, self.head = features, head

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """Scores (N,).

        Raises: NonFiniteError if a score is NaN or infinite.
        """
        return require_finite_scores(self.head(self.features(prompts, completions)), completions, "the reward head")


class PairwiseGoldRewardModel:
    """The gold reward model; scores answers without using the prompt."""

    def __init__(self, folder: Path) -> None:
        self.model = GoldRewardModel(folder)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """Scores (N,), about -1 (rejected) to 1 (chosen)."""
        return self.model(completions)


def train_pairwise_gold_reward_model(pairs: Sequence[Pair], ridge: float, folder: Path) -> None:
    """Fit a ridge regression on tf-idf features with target 1 for chosen and -1 for rejected answers, and save it."""
    answers = [answer for pair in pairs for answer in answers_of(pair)]
    train_gold_reward_model(answers, np.tile([1.0, -1.0], len(pairs)), ridge, folder)


def margin_accuracy(margin_P: Array) -> Accuracy:
    """Share of pairs with a positive margin (ties count half), with Wilson's 95 % score interval."""
    n, z = len(margin_P), 1.96
    share = float((0.5 + 0.5 * np.sign(margin_P)).mean())
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return {"accuracy": share, "interval": [center - half, center + half], "num_pairs": n}
