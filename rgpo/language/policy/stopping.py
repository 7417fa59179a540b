"""Stop conditions of a completion: token ids, and strings that may span several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rgpo.errors import require

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def token_id(tokenizer: PreTrainedTokenizerBase, token: str | int) -> int:
    """The id of a token given by text or id.

    Raises: ConfigError if the tokenizer has no such token.
    """
    known = tokenizer.get_vocab()
    found = known.get(token) if isinstance(token, str) else token
    require(
        found is not None and 0 <= found < len(tokenizer), "task.stop_tokens", token, "the tokenizer has no such token; check it."
    )
    assert found is not None
    return found


def find_stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turn_end: int | None) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's eos, those in generation_config, and the chat template's end of turn."""
    listed = model.generation_config.eos_token_id if model.generation_config is not None else None
    several = listed if isinstance(listed, list | tuple) else [listed]
    return frozenset(int(i) for i in (tokenizer.eos_token_id, turn_end, *several) if i is not None)


@dataclass(frozen=True)
class StopRule:
    """A completion ends with (and includes) the first token in ids, or the first token that completes one of strings."""

    ids: frozenset[int]
    strings: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None  # required if there are strings

    @cached_property
    def _tail(self) -> int:
        """Number of last tokens that must contain a just completed string; a character takes at most 4 byte tokens."""
        return 4 * max(map(len, self.strings)) + 4

    def ended(self, completion_bt: Tensor) -> Tensor:
        """True (b,) for completions that end with their last token; none may have ended before."""
        import torch

        ids = torch.tensor(sorted(self.ids), device=completion_bt.device)
        ended = torch.isin(completion_bt[:, -1], ids)
        if self.strings:
            found = [self.finished(row) for row in completion_bt[:, -self._tail :].tolist()]
            ended |= torch.tensor(found, device=ended.device)
        return ended

    def finished(self, ids: Sequence[int]) -> bool:
        """True if a completion has ended."""
        if len(ids) > 0 and ids[-1] in self.ids:
            return True
        if not self.strings:
            return False
        assert self.tokenizer is not None
        text = self.tokenizer.decode(ids[-self._tail :], skip_special_tokens=False)
        return any(string in text for string in self.strings)

    def body(self, ids: list[int]) -> list[int]:
        """A completion without the stop token in ids that ended it, if any."""
        return ids[:-1] if ids and ids[-1] in self.ids else ids

    def cut(self, text: str) -> str:
        """A completion's text up to the first stop string."""
        starts = [text.index(string) for string in self.strings if string in text]
        return text[: min(starts, default=len(text))]


def make_stop_rule(
    tokenizer: PreTrainedTokenizerBase, default: frozenset[int], tokens: list[str | int] | None, strings: list[str]
) -> StopRule:
    """Make a rule from strings and from tokens, given by text or id; tokens None: the default ones.

    Raises: ConfigError if the tokenizer lacks one of the tokens.
    """
    ids = default if tokens is None else frozenset(token_id(tokenizer, token) for token in tokens)
    return StopRule(ids, tuple(strings), tokenizer)
