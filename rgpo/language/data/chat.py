"""Dialogues as a chat model reads them: prompts for the policy, whole exchanges for a reward model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rgpo.errors import ConfigError, first_line, require
from rgpo.language.assets import Array, Materials, Prompt, Say, Scorer
from rgpo.language.data.hh_rlhf import Pair, messages
from rgpo.language.rewards.reward_model import ProxyReward

MODEL = "task.source.model"


def chat(tokenizer: Any, turns: list[dict[str, str]], *, answer_next: bool) -> str:
    """The tokenizer's chat template over turns, with the assistant's turn begun where the answer comes next. ConfigError."""
    from jinja2 import TemplateError

    name = tokenizer.name_or_path
    require(bool(tokenizer.chat_template), MODEL, name, "its tokenizer has no chat template, give an instruction-tuned model.")
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next))
    except TemplateError as error:
        raise ConfigError(f"{MODEL}={name}: its chat template refuses a dialogue ({first_line(error)}).") from error


def encode_prompts(tokenizer: Any, pairs: Iterable[Pair], max_tokens: int) -> tuple[list[Prompt], int]:
    """The distinct prompts of at most max_tokens under the chat template, and how many were longer and are left out."""
    texts = list(dict.fromkeys(pair.prompt for pair in pairs))
    if not texts:
        return [], 0
    written = [chat(tokenizer, messages(text), answer_next=True) for text in texts]
    rows = tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
    kept = [Prompt(text, ids) for text, ids in zip(texts, rows, strict=True) if len(ids) <= max_tokens]
    return kept, len(texts) - len(kept)


def assemble(
    model: Any,
    tokenizer: Any,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    proxy: Scorer,
    gold: Scorer | None,
    say: Say,
) -> Materials:
    """The materials of a chat model; prompts that are too long, for the limit or the model's context, are left out and counted.

    ConfigError if none is left to train on or to hold out.
    """
    context = model.config.max_position_embeddings
    require(
        max_new_tokens < context, "task.max_new_tokens", max_new_tokens, f"must leave room in the context of {context} tokens."
    )
    limit = min(max_prompt_tokens, context - max_new_tokens)
    (train_prompts, long), (heldout_prompts, too_long) = (encode_prompts(tokenizer, part, limit) for part in (train, heldout))
    dropped = long + too_long
    kept = f"{len(train_prompts)} to train on, {len(heldout_prompts)} held out"
    say(f"prompts: {kept}; {dropped} longer than {limit} tokens left out")
    if not (train_prompts and heldout_prompts):
        raise ConfigError(
            f"task.source.max_prompt_tokens={max_prompt_tokens}: leaves {kept} ({dropped} are longer than {limit} tokens), "
            "raise it or give more data."
        )
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Materials(
        model=model,
        tokenizer=tokenizer,
        eos_id=tokenizer.eos_token_id,
        pad_id=pad_id,
        train_prompts=train_prompts,
        heldout_prompts=heldout_prompts,
        num_dropped=dropped,
        proxy=proxy,
        gold=gold,
    )


class ChatReward:
    """A reward model's scores of exchanges under its own chat template, or as HH-RLHF writes them where it has none."""

    def __init__(self, key: str, path_or_id: str, *, dtype: str, device: str, trust_remote_code: bool, batch_size: int) -> None:
        self.reward = ProxyReward(
            path_or_id, batch_size, key=key, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        self.has_template = bool(self.reward.tokenizer.chat_template)
        self.reward.special_tokens = not self.has_template  # a template writes them itself

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Array:
        """(N,) scores. NonFiniteError for NaN."""
        return self.reward([self.render(*exchange) for exchange in zip(prompts, completions, strict=True)])

    def render(self, prompt: str, completion: str) -> str:
        """What the reward model reads."""
        if self.has_template:
            return chat(self.reward.tokenizer, messages(prompt, completion), answer_next=False)
        return f"\n\n{prompt}\n\nAssistant: {completion}"
