"""Training of the embedded scale's tokenizer, language model and reward model on the CPU, saved in Hugging Face's format.

Legend: B sentences, T tokens, H hidden size. Texts end with eos; batches are right-padded, so a causal model needs no mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2Tokenizer,
)

from rgpo.core.rollout import Array
from rgpo.language.assets import Log

Rows = list[list[int]]

PAD, EOS = "<|pad|>", "<|endoftext|>"
PAD_ID, EOS_ID = 0, 1


class Recipe(NamedTuple):
    """All settings that determine the weights, apart from the sentences."""

    seed: int = 0
    shares: tuple[float, float, float, float] = (0.15, 0.40, 0.35, 0.10)  # fractions of sentences: policy, reward, gold, heldout
    vocab_size: int = 1536
    hidden_size: int = 96
    intermediate_size: int = 256
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    max_tokens: int = 64  # longer sentences are cut (one in 30)
    lm_epochs: int = 4
    lm_batch: int = 32
    lm_lr: float = 4e-3
    reward_epochs: int = 2
    reward_batch: int = 16  # all pairs within a batch are used
    reward_lr: float = 1e-3
    reward_margin: float = 0.5  # least difference in rating points within a training pair
    token_dropout: float = 0.2  # fraction of a sentence's tokens dropped when training the reward model
    gold_ridge: float = 1.0
    eval_margin: float = 1.0  # least difference in rating points within a test pair


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Use one thread and seed torch's global generator, which Hugging Face uses; both are restored at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), threadpool_limits(1):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with pad and eos as ids 0 and 1; it can encode any string.

    It uses Qwen2's normalizer and pre-tokenizer, because AutoTokenizer applies these to every Qwen2 folder anyway.
    """
    tokenizer = Tokenizer(models.BPE())
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = qwen2.normalizer, qwen2.pre_tokenizer, qwen2.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, appends_eos: bool) -> None:
    """Save for AutoTokenizer: for generation, without eos and left-padded; for scoring, with eos and right-padded."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    if appends_eos:
        copy.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)])
    side = "right" if appends_eos else "left"
    fast = PreTrainedTokenizerFast(tokenizer_object=copy, pad_token=PAD, eos_token=EOS, padding_side=side, model_max_length=256)
    fast.save_pretrained(folder)


def rows_of(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Rows:
    """Token ids of each text, cut to at most max_tokens including the final eos."""
    return [[*encoding.ids[: max_tokens - 1], EOS_ID] for encoding in tokenizer.encode_batch(list(texts))]


def pad(rows: Rows) -> Tensor:
    """Pad ids on the right to (B, T)."""
    out = torch.full((len(rows), max(map(len, rows))), PAD_ID)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


def batches(rows: Rows, size: int, rng: np.random.Generator) -> list[Array]:
    """One epoch of batches, as indices of rows of similar length, in random order."""
    order = rng.permutation(len(rows))
    lengths = np.array([len(row) for row in rows])
    out = []
    for start in range(0, len(order), 12 * size):
        block = order[start : start + 12 * size]
        block = block[np.argsort(lengths[block], kind="stable")]
        out += [block[i : i + size] for i in range(0, len(block), size)]
    return [out[i] for i in rng.permutation(len(out))]


def make_config(recipe: Recipe, vocab_size: int) -> Qwen2Config:
    """Config of a Qwen2 with tied embeddings."""
    return Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
    )


def next_token_loss(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """-log p(next token) in nats, (N,) over the N targets of (B, T) ids that are not padding."""
    target = ids[:, 1:]
    real = target != PAD_ID
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[real]  # (N, H)
    return functional.cross_entropy(model.lm_head(hidden), target[real], reduction="none")


def new_language_model(vocab_size: int, recipe: Recipe) -> Qwen2ForCausalLM:
    """A Qwen2ForCausalLM with random weights."""
    model = Qwen2ForCausalLM(make_config(recipe, vocab_size))
    model.generation_config = GenerationConfig(pad_token_id=PAD_ID, eos_token_id=EOS_ID)
    return model


def fit_language_model(model: PreTrainedModel, rows: Rows, recipe: Recipe, log: Log) -> None:
    """Train on next-token prediction."""

    def loss(index: Array, rng: np.random.Generator) -> Tensor:
        return next_token_loss(model, pad([rows[i] for i in index])).mean()

    shape = (recipe.lm_epochs, recipe.lm_batch, recipe.lm_lr)
    _fit(model, rows, loss, shape, recipe.seed, lambda line: log(f"language model: {line} nats per token"))


def bradley_terry_loss(score: Tensor, rating: Tensor, margin: float) -> Tensor:
    """Mean of -log sigmoid(score_i - score_j) over pairs with rating_i - rating_j >= margin, inputs (B,); 0 without pairs."""
    better = rating[:, None] - rating[None, :] >= margin
    difference = (score[:, None] - score[None, :])[better]
    return -functional.logsigmoid(difference).sum() / max(1, difference.numel())


def new_reward_model(language_model: PreTrainedModel, recipe: Recipe) -> Qwen2ForSequenceClassification:
    """A Qwen2ForSequenceClassification with one output, read at eos: the language model's body and a zero-initialized head."""
    config = make_config(recipe, language_model.config.vocab_size)
    config.num_labels = 1
    model = Qwen2ForSequenceClassification(config)
    model.model.load_state_dict(language_model.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model


def fit_reward_model(model: PreTrainedModel, rows: Rows, rating: Array, recipe: Recipe, log: Log) -> None:
    """Train on the order of the ratings (N,) with the Bradley-Terry loss."""
    ratings = torch.from_numpy(rating).float()

    def loss(index: Array, rng: np.random.Generator) -> Tensor:
        kept = [_drop(rows[i], recipe.token_dropout, rng) for i in index]
        score = model(input_ids=pad(kept), use_cache=False).logits[:, 0]
        return bradley_terry_loss(score, ratings[torch.from_numpy(index)], recipe.reward_margin)

    shape = (recipe.reward_epochs, recipe.reward_batch, recipe.reward_lr)
    _fit(model, rows, loss, shape, recipe.seed + 1, lambda line: log(f"reward model: {line} nats per pair"))


def _drop(row: list[int], share: float, rng: np.random.Generator) -> list[int]:
    keep = rng.random(len(row) - 1) >= share
    return [token for token, kept in zip(row, keep, strict=False) if kept] + row[-1:]


def _fit(
    model: PreTrainedModel,
    rows: Rows,
    loss: Callable[[Array, np.random.Generator], Tensor],
    shape: tuple[int, int, float],
    seed: int,
    log: Log,
) -> None:
    """Train with AdamW, 50 warm-up steps, cosine decay to 5 %, gradient norm at most 1; shape: (epochs, batch size, peak lr)."""
    num_epochs, batch_size, lr = shape
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    num_steps = num_epochs * math.ceil(len(rows) / batch_size)
    model.train()
    step = 0
    for epoch in range(num_epochs):
        losses = []
        for index in batches(rows, batch_size, rng):
            cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / num_steps))
            optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 50) * cosine
            value = loss(index, rng)
            optimizer.zero_grad()
            torch.autograd.backward(value)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(value.item())
            step += 1
        log(f"epoch {epoch + 1}/{num_epochs}, loss {np.mean(losses):.3f}")
    model.eval()


def mean_nats(model: PreTrainedModel, rows: Rows) -> float:
    """Mean -log p(next token) over all targets, in nats."""
    with torch.inference_mode():
        nats = [next_token_loss(model, pad(rows[i : i + 64])) for i in range(0, len(rows), 64)]
    return torch.cat(nats).double().mean().item()


def sample(model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[str], num_tokens: int) -> list[str]:
    """Prompts with completions of at most num_tokens, sampled at temperature 1; prompts of equal length share a batch."""
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    out = [""] * len(ids)
    for length in sorted({len(row) for row in ids}):
        index = [i for i, row in enumerate(ids) if len(row) == length]
        prompt = torch.tensor([ids[i] for i in index])
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": num_tokens}
        drawn = model.generate(prompt, attention_mask=torch.ones_like(prompt), **sampling)
        for i, row in zip(index, drawn.tolist(), strict=True):
            out[i] = tokenizer.decode(row, skip_special_tokens=True)
    return out
