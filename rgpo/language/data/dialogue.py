"""Dialogues of system, user and assistant turns, as text for rewards and samples, and as messages for chat templates.

Anthropic's HH-RLHF (Bai et al., arXiv 2204.05862) writes them as "\\n\\nHuman: ...\\n\\nAssistant: ...". Consecutive turns by the
same speaker are merged for the chat template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
ANSWER = "\n\nAssistant:"
ROLES = {"Human": "user", "Assistant": "assistant"}
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}
Message = dict[str, str]  # role and content


class Dialogue(str):
    """A prompt's text with its turns as an attribute; the text of several turns includes the speakers' names."""

    __slots__ = ("messages", "standard")
    messages: tuple[Message, ...]
    standard: bool  # True if the prompt was given as plain text

    @classmethod
    def of(cls, messages: Sequence[Message], standard: bool = False) -> Dialogue:
        """Make a dialogue from turns."""
        single = len(messages) == 1
        text = messages[0]["content"] if single else write_turns(messages)
        made = cls(text)
        made.messages, made.standard = tuple(messages), standard
        return made


@dataclass(frozen=True)
class Pair:
    """A prompt, with two answers if the data have them; columns is the row from which it was read."""

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    heldout: bool = False  # True if read from a held-out file
    columns: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)


def write_turns(messages: Sequence[Message]) -> str:
    """Write turns in HH-RLHF's format, without the leading empty line."""
    return "\n\n".join(f"{SPEAKERS[turn['role']]}: {turn['content']}" for turn in messages)


def to_messages(prompt: str, *answer: str) -> list[Message]:
    """Convert a dialogue or a text in HH-RLHF's format, with an optional answer, to messages for a chat template."""
    if isinstance(prompt, Dialogue):
        messages = [dict(turn) for turn in prompt.messages]
    else:
        parts = TURN.split(prompt)
        turns = zip(parts[1::2], parts[2::2], strict=True)
        messages = merge_turns({"role": ROLES[speaker], "content": text.strip()} for speaker, text in turns)
    return messages + [{"role": "assistant", "content": text} for text in answer]


def merge_turns(turns: Iterable[Message]) -> list[Message]:
    """Merge consecutive turns by the same speaker."""
    messages: list[Message] = []
    for turn in turns:
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1]["content"] += f"\n\n{turn['content']}"
        else:
            messages.append(dict(turn))
    return messages


def first_turn(prompt: str) -> Dialogue:
    """A dialogue up to and including its first question, with its system prompt if it has one."""
    messages = to_messages(prompt)
    end = next(i for i, turn in enumerate(messages) if turn["role"] == "user") + 1
    return Dialogue.of(messages[:end], standard=isinstance(prompt, Dialogue) and prompt.standard)


def to_text(prompt: str) -> str:
    """A prompt in HH-RLHF's format, without the leading empty line."""
    return write_turns(prompt.messages) if isinstance(prompt, Dialogue) else prompt
