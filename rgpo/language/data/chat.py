"""Dialogues encoded with a chat template: prompts, preference pairs, and the assets of a chat model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from rgpo.errors import ConfigError, require
from rgpo.language.assets import LanguageAssets, Log, PreferencePair, Prompt, RewardFunction
from rgpo.language.data.dataset import require_pairs
from rgpo.language.data.dialogue import Pair
from rgpo.language.data.template import AS_GIVEN, PromptFormat, apply_chat_template
from rgpo.language.policy.pretrained import context_length
from rgpo.language.policy.stopping import find_stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWERS = ("prompt", "chosen", "rejected", "messages", "conversations", "instruction", "completions", "completion")


def find_turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that a chat template writes after an assistant's answer; None if text or nothing follows."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    _, _, rest = apply_chat_template(tokenizer, messages, answer_next=False).rpartition("answer")
    ids = tokenize(tokenizer, [rest])[0]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without adding special tokens."""
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    return rows


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair], max_tokens: int, prompt_format: PromptFormat = AS_GIVEN
) -> tuple[list[Prompt], int]:
    """The distinct prompts with at most max_tokens under the chat template, and the number of longer ones, which are dropped.

    Prompts are distinct if their texts differ, or if columns outside the dialogues differ, such as a reference answer.
    """
    distinct: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        distinct.setdefault((str(pair.prompt), own_columns(pair)), pair)
    found = list(distinct.values())
    rows = tokenize(tokenizer, [prompt_format.render(tokenizer, pair.prompt) for pair in found])
    kept = [Prompt(pair.prompt, ids, pair.columns) for pair, ids in zip(found, rows, strict=True) if 0 < len(ids) <= max_tokens]
    return kept, len(found) - len(kept)


def own_columns(pair: Pair) -> str:
    """A row's columns other than its dialogues, as a string for comparison."""
    return repr(sorted((name, value) for name, value in pair.columns.items() if name not in ANSWERS))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[Pair], prompts: Iterable[Prompt], max_new_tokens: int, eos_id: int
) -> list[PreferencePair]:
    """The pairs whose prompt is among prompts; answers are followed by eos_id and cut at max_new_tokens.

    Pairs whose answers are equal after the cut are dropped, since they express no preference.
    """
    by_text = {prompt.text: prompt for prompt in prompts}
    kept = [pair for pair in pairs if pair.prompt in by_text]
    chosen, rejected = (
        [end_answer(ids, eos_id, max_new_tokens) for ids in tokenize(tokenizer, answers)]
        for answers in ([pair.chosen or "" for pair in kept], [pair.rejected or "" for pair in kept])
    )
    found = [PreferencePair(by_text[pair.prompt], a, b) for pair, a, b in zip(kept, chosen, rejected, strict=True)]
    return [pair for pair in found if pair.chosen_ids != pair.rejected_ids]


def end_answer(ids: Sequence[int], eos_id: int, max_new_tokens: int) -> list[int]:
    """The answer as a policy would generate it: up to the first eos, which is appended if missing, cut at max_new_tokens."""
    ended = [*ids, eos_id]
    return ended[: ended.index(eos_id) + 1][:max_new_tokens]


def make_chat_assets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Pair],
    heldout: Sequence[Pair],
    *,
    max_prompt_tokens: int,
    max_new_tokens: int,
    reward_model: RewardFunction | None,
    gold_reward_model: RewardFunction | None,
    versions: Mapping[str, str],
    log: Log,
    data: str = "",
    prompt_format: PromptFormat = AS_GIVEN,
) -> LanguageAssets:
    """The assets of a chat model; prompts that exceed the limit or the model's context are dropped and counted.

    Raises: ConfigError if no training or no held-out prompts remain, or if max_new_tokens is not below the context length.
    """
    context, limit = context_length(model.config), max_prompt_tokens
    if context is not None:
        remedy = f"must be smaller than the context of {context} tokens."
        require(max_new_tokens < context, "task.max_new_tokens", max_new_tokens, remedy)
        limit = min(max_prompt_tokens, context - max_new_tokens)
    turn_end = find_turn_end(tokenizer)
    eos_id = tokenizer.eos_token_id if turn_end is None else turn_end
    (train_prompts, train_dropped), (heldout_prompts, heldout_dropped) = (
        encode_prompts(tokenizer, part, limit, prompt_format) for part in (train, heldout)
    )
    dropped = train_dropped + heldout_dropped
    kept = f"{len(train_prompts)} for training, {len(heldout_prompts)} held out"
    log(f"prompts: {kept}; {dropped} longer than {limit} tokens left out")
    if not (train_prompts and heldout_prompts):
        raise ConfigError(
            f"task.source.max_prompt_tokens={max_prompt_tokens}: leaves {kept} ({dropped} are longer than {limit} tokens); "
            "raise it or give more data."
        )

    @cache
    def preference_pairs(max_new_tokens: int) -> Sequence[PreferencePair]:
        answered = require_pairs(train, data, "which the algorithm learns from")
        pairs = encode_pairs(tokenizer, answered, train_prompts, max_new_tokens, eos_id)
        log(f"preference pairs: {len(pairs)} of {len(answered)} for training")
        return pairs

    return LanguageAssets(
        model=model,
        tokenizer=tokenizer,
        eos_id=eos_id,
        pad_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        train_prompts=train_prompts,
        heldout_prompts=heldout_prompts,
        num_dropped=dropped,
        reward_model=reward_model,
        gold_reward_model=gold_reward_model,
        preference_pairs=preference_pairs,
        stop_ids=find_stop_ids(model, tokenizer, turn_end),
        versions=versions,
    )
