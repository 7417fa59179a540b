"""Row formats, recognized by their columns; a row becomes a prompt, with two answers if it has them.

| columns | format |
|---|---|
| chosen, rejected: texts of HH-RLHF ("\\n\\nHuman: ...\\n\\nAssistant: ..."), equal up to the last answer | HH-RLHF |
| prompt, chosen, rejected: texts or messages | preferences (TRL), UltraFeedback |
| chosen, rejected: texts or messages whose common beginning is the prompt | preferences with an implicit prompt (TRL) |
| prompt: a text or messages; any other columns | prompts, prompts with completions (TRL) |
| messages, or conversations: turns; a final turn by the assistant is not part of the prompt | chat transcripts |
| instruction, completions | UltraFeedback as first published |

Messages are a list of {role: system, user or assistant, content: text}.
"""

from __future__ import annotations

from collections.abc import Mapping

from rgpo.language.data.dialogue import ANSWER, TURN, Dialogue, Message, Pair, merge_turns, to_messages

NAMES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}  # role names used in conversations
ROLES = ("system", "user", "assistant")
Columns = Mapping[str, object]


class Malformed(Exception):
    """A row has a known format but cannot be used; the message is the reason, such as "lacks a text under chosen"."""


class Unusable(Exception):
    """A row is well-formed but carries no information; the message names the reason, such as "an empty answer"."""


def is_known(columns: Columns) -> bool:
    """True if these columns are those of a known format."""
    return (
        any(name in columns for name in ("prompt", "messages", "conversations"))
        or {"chosen", "rejected"} <= columns.keys()
        or {"instruction", "completions"} <= columns.keys()
    )


def to_pair(columns: Columns) -> Pair:
    """Convert a row to its prompt and answers.

    Raises: Malformed if the row does not follow its format; Unusable if it has, for example, equal answers.
    """
    if "chosen" in columns or "rejected" in columns:
        return _preference(columns)
    if "prompt" in columns:
        prompt = _prompt("prompt", columns["prompt"])
    elif "instruction" in columns and "completions" in columns:
        prompt = _prompt("instruction", columns["instruction"])
    else:
        name = "messages" if "messages" in columns else "conversations"
        turns = _messages(name, columns.get(name))
        prompt = _dialogue(turns[:-1] if turns[-1]["role"] == "assistant" else turns)
    return Pair(prompt, columns=columns)


def _preference(columns: Columns) -> Pair:
    chosen, rejected = columns.get("chosen"), columns.get("rejected")
    given = columns.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, first, second = _preference_of_texts(given, chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        prompt, first, second = _preference_of_messages(given, chosen, rejected)
    else:
        raise Malformed("lacks a text or messages under chosen or rejected")
    if not (first.strip() and second.strip()):
        raise Unusable("an empty answer")
    if first == second:
        raise Unusable("equal answers")
    return Pair(prompt, first, second, columns=columns)


def _preference_of_texts(given: object, chosen: str, rejected: str) -> tuple[str, str, str]:
    if given is not None:
        prompt = _prompt("prompt", given)
        repeated = given if isinstance(given, str) else ""  # some data sets repeat the prompt before the answers
        first, second = chosen.removeprefix(repeated), rejected.removeprefix(repeated)
        return (prompt, first, second) if isinstance(prompt, Dialogue) else (prompt, first.strip(), second.strip())
    if chosen.lstrip().startswith("Human:") and rejected.lstrip().startswith("Human:"):
        prompt, first = _split_answer("chosen", chosen)
        other, second = _split_answer("rejected", rejected)
        if prompt != other:
            raise Unusable("different prompts")
        if to_messages(prompt)[-1]["role"] != "user":
            raise Unusable("no question before the answer")
        return prompt, first, second
    common = _common_beginning(chosen, rejected)
    if chosen not in (common, rejected) and rejected != common:
        common = common[: max(common.rfind(" "), common.rfind("\n")) + 1]  # so that answers begin with a whole word
    if chosen == rejected:
        raise Unusable("equal answers")
    if not common.strip():
        raise Unusable("different prompts")
    common = common.rstrip()  # the space before a word belongs to the answer
    return _prompt("prompt", common), chosen[len(common) :], rejected[len(common) :]


def _common_beginning(first: str, second: str) -> str:
    different = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(different, min(len(first), len(second)))]


def _preference_of_messages(given: object, chosen: list[object], rejected: list[object]) -> tuple[str, str, str]:
    first, second = _messages("chosen", chosen), _messages("rejected", rejected)
    if first[-1]["role"] != "assistant" or second[-1]["role"] != "assistant":
        raise Malformed("must end with a turn of the assistant under chosen and rejected")
    if first[:-1] != second[:-1]:
        raise Unusable("different prompts")
    if isinstance(given, list):
        turns = _messages("prompt", given)
        whole = first[: len(turns)] == turns  # the answers may repeat the prompt
        turns = [*([] if whole else turns), *first[:-1]]
        prompt: str = _dialogue(turns)
    elif len(first) > 1:
        prompt = _dialogue(first[:-1])
    else:
        prompt = _prompt("prompt", given)
    return prompt, first[-1]["content"], second[-1]["content"]


def _split_answer(name: str, text: str) -> tuple[str, str]:
    """Split a dialogue in HH-RLHF's format into (prompt, answer)."""
    speakers = TURN.findall(f"\n\n{text.lstrip()}")
    if not speakers or speakers[0] != "Human" or speakers[-1] != "Assistant":
        raise Malformed(f"must begin with a turn of the Human and end with one of the Assistant under {name}")
    prompt, _, answer = text.rpartition(ANSWER)
    return prompt.strip(), answer.strip()


def _prompt(name: str, value: object) -> str:
    """A prompt given as plain text, as a dialogue in HH-RLHF's format, or as messages."""
    if isinstance(value, list):
        return _dialogue(_messages(name, value))
    if not isinstance(value, str):
        raise Malformed(f"lacks a text or messages under {name}")
    _require_unicode(name, value)
    if not value.strip():
        raise Malformed(f"has an empty {name}")
    text = value.strip()
    speakers = TURN.findall(text)
    if text.startswith("Human:") and speakers[-1] == "Assistant" and text.endswith(ANSWER.strip()):
        return text.removesuffix(ANSWER.strip()).strip()
    if text.startswith("Human:") and speakers[-1] == "Human" and value.startswith("\n\n"):
        return text
    return Dialogue.of([{"role": "user", "content": value}], standard=True)


def _dialogue(turns: list[Message]) -> Dialogue:
    if not turns or turns[-1]["role"] != "user":
        raise Unusable("no question before the answer")
    if not turns[-1]["content"].strip():
        raise Malformed("has an empty question")
    return Dialogue.of(merge_turns(turns))


def _messages(name: str, value: object) -> list[Message]:
    found = [_message(name, entry) for entry in value] if isinstance(value, list) else []
    if not found:
        raise Malformed(f"lacks messages under {name}")
    return found


def _message(name: str, entry: object) -> Message:
    entries = entry if isinstance(entry, Mapping) else {}
    role, content = entries.get("role", entries.get("from")), entries.get("content", entries.get("value"))
    if isinstance(content, list) and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        content = "".join(part["text"] for part in content)  # text parts of multimodal messages
    role = NAMES.get(role, role) if isinstance(role, str) else role
    if role == "developer":
        role = "system"
    if role not in ROLES or not isinstance(content, str):
        raise Malformed(f"has a turn under {name} that is not {{role: {', '.join(ROLES)}, content: text}}")
    _require_unicode(name, content)
    return {"role": str(role), "content": content}


def _require_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Malformed(f"has text under {name} that is not valid Unicode") from None
