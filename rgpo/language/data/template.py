"""Chat templates: the tokenizer's own, a file, or one of two simple formats for models without a template.

transformers renders templates in an ImmutableSandboxedEnvironment, without access to Python or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rgpo.errors import ConfigError, first_line, require
from rgpo.files import Unreadable, read_text
from rgpo.language.assets import Log
from rgpo.language.data.dialogue import Dialogue, Message, to_messages
from rgpo.language.policy.model_files import find_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL, TEMPLATE, SYSTEM, KWARGS = (
    f"task.source.{name}" for name in ("model", "chat_template", "system_prompt", "chat_template_kwargs")
)
HH = (  # HH-RLHF's format, the usual one for RLHF of base models
    "{% for turn in messages %}"
    "{{ '\n\n' + {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'}[turn['role']] + ': ' + turn['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
PLAIN = "{% for turn in messages %}{{ turn['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
NAMED = {"hh": HH, "plain": PLAIN}  # plain: the prompt's text, unchanged, for the model to continue
RESERVED = ("tokenize", "add_generation_prompt", "messages", "conversation", "chat_template", "return_tensors", "return_dict")
PROBES = ("first question of a check", "second question of a check")


@dataclass(frozen=True)
class PromptFormat:
    """Additions to a prompt: a system prompt and extra template variables."""

    system_prompt: str | None = None
    template_kwargs: Mapping[str, object] = field(default_factory=dict)

    def messages(self, prompt: str) -> list[Message]:
        """A prompt's turns, preceded by the system prompt unless the prompt has its own."""
        turns = to_messages(prompt)
        if self.system_prompt is None or turns[0]["role"] == "system":
            return turns
        return [{"role": "system", "content": self.system_prompt}, *turns]

    def render(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
        """Render the prompt with the tokenizer's chat template, up to the start of the answer."""
        return apply_chat_template(tokenizer, self.messages(prompt), answer_next=True, **self.template_kwargs)

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises: ConfigError if the template drops a question or the system prompt, or does not use a variable."""
        key, name = MODEL, tokenizer.name_or_path
        single = self.render(tokenizer, Dialogue.of([{"role": "user", "content": PROBES[0]}]))
        answer = {"role": "assistant", "content": "an answer"}
        turns = [{"role": "user", "content": PROBES[0]}, answer, {"role": "user", "content": PROBES[1]}]
        several = self.render(tokenizer, Dialogue.of(turns))
        kept = PROBES[0] in single and PROBES[1] in several
        require(kept, key, name, f"its chat template drops the prompt; give another with {TEMPLATE}=FILE.")
        if self.system_prompt is not None:
            shown = self.system_prompt.strip() in single
            require(shown, SYSTEM, self.system_prompt, "is not written by the chat template of the model; use null.")
        template = str(tokenizer.chat_template)
        for variable in self.template_kwargs:
            known = re.search(rf"\b{re.escape(variable)}\b", template) is not None and variable not in RESERVED
            require(known, f"{KWARGS}.{variable}", self.template_kwargs[variable], "is not read by the chat template; remove it.")


AS_GIVEN = PromptFormat()


def apply_chat_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool, **variables: object
) -> str:
    """Render messages with the tokenizer's chat template; answer_next: also begin the assistant's turn.

    Raises: ConfigError if there is no template or it rejects the messages.
    """
    name = tokenizer.name_or_path
    require(bool(tokenizer.chat_template), MODEL, name, f"its tokenizer has no chat template; give one with {TEMPLATE}.")
    given: list[dict[str, str]] = [dict(turn) for turn in messages]
    try:
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=answer_next, **variables))
    except Exception as error:  # templates may raise anything
        remedy = f"give another with {TEMPLATE}=FILE, or leave out such dialogues"
        raise ConfigError(f"{MODEL}={name}: its chat template rejects a dialogue ({first_line(error)}); {remedy}.") from error


def check_template(chat_template: str | None) -> None:
    """Raises: ConfigError if a template is neither None, a known name nor a readable file."""
    if chat_template is not None and chat_template not in NAMED:
        path = find_local(TEMPLATE, chat_template)
        require(path is not None, TEMPLATE, chat_template, f"is neither {' nor '.join(NAMED)} nor a file; give a jinja file.")
        _read(chat_template)


def _read(chat_template: str) -> str:
    path = find_local(TEMPLATE, chat_template)
    assert path is not None
    try:
        text = read_text(path)
    except Unreadable as error:
        raise ConfigError(f"{TEMPLATE}={chat_template}: {error}; give a jinja file.") from error
    require(bool(text.strip()), TEMPLATE, chat_template, "is empty; give a jinja file.")
    return text


def set_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, prompts: Iterable[str], log: Log, name: str
) -> None:
    """Set the tokenizer's template to a named one or a file's; if None is given, a model without a template gets a simple format.

    Raises: ConfigError if the file cannot be read.
    """
    if chat_template is None and not tokenizer.chat_template:
        chat_template = "plain" if all(isinstance(prompt, Dialogue) and prompt.standard for prompt in prompts) else "hh"
        how = {"plain": "prompts are continued as they are", "hh": "prompts are written as Human: ... Assistant:"}[chat_template]
        log(f"{name} has no chat template: {how} ({TEMPLATE}={chat_template})")
    if chat_template is not None:
        named = NAMED.get(chat_template)
        tokenizer.chat_template = _read(chat_template) if named is None else f"{_beginning(tokenizer)}{named}"


def _beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template code for the token that the tokenizer writes before every text; "" if there is none."""
    bos, ids = tokenizer.bos_token_id, tokenizer("a")["input_ids"]
    return "{{ bos_token }}" if bos is not None and ids[:1] == [bos] else ""
