"""Code shared by all sources of chat models: data, chat template and adapter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rgpo.core.ranges import MANY, check_fields, count, one_of
from rgpo.language.assets import LanguageAssets, Log, RewardFunction
from rgpo.language.data.chat import make_chat_assets
from rgpo.language.data.dataset import Dataset, check_data, check_eval_data, load_dataset
from rgpo.language.data.dialogue import Pair, first_turn
from rgpo.language.data.template import PromptFormat, check_template, set_template
from rgpo.language.policy.adapter import check_adapter, merge_adapter
from rgpo.language.policy.model_files import version_of
from rgpo.language.policy.pretrained import DEVICE, DTYPES, load_causal_lm

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(kw_only=True)
class ChatSource:
    """Settings of a chat model's prompts, explained in conf/scale/paper.yaml."""

    data: str | None
    max_prompt_tokens: int = field(metadata=count(MANY))
    max_new_tokens: int = field(metadata=count(MANY))
    split_seed: int
    dtype: str = field(metadata=one_of(*DTYPES))
    device: str = field(metadata=DEVICE)
    eval_data: str | None = None
    first_turn: bool = False
    adapter: str | None = None
    chat_template: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, object] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "task.source")

    def check_paths(self) -> None:
        """Raises: ConfigError if data, template or adapter are missing or invalid; hub ids are only looked up on loading."""
        check_data(self.data)
        check_eval_data(self.eval_data)
        check_template(self.chat_template)
        if self.adapter is not None:
            check_adapter(self.adapter)

    def load_data(self, log: Log) -> tuple[Dataset, dict[str, str]]:
        """Every usable row, cut to its first turn if first_turn is set, and the versions of the data, by path or hub id.

        Raises: ConfigError as ``load_dataset``.
        """
        assert self.data is not None
        data = load_dataset(self.data, self.eval_data, log)
        if self.first_turn:
            data = replace(data, pairs=[replace(pair, prompt=first_turn(pair.prompt)) for pair in data.pairs])
        versions = {self.data: version_of(*data.files)}
        return data, versions | ({str(self.eval_data): version_of(*data.eval_files)} if data.eval_files else {})

    def load_assets(
        self,
        folder: Path,
        name: str,
        train: Sequence[Pair],
        heldout: Sequence[Pair],
        *,
        reward_model: RewardFunction | None,
        gold_reward_model: RewardFunction | None,
        versions: dict[str, str],
        log: Log,
        attn_implementation: str = "sdpa",
    ) -> LanguageAssets:
        """The assets of the model in a folder; name: for messages; versions: those of everything loaded so far.

        Raises: ConfigError if model, adapter or template cannot be read or used.
        """
        log(f"loading {name} ({self.dtype})")
        model, tokenizer = load_causal_lm(folder, dtype=self.dtype, attn_implementation=attn_implementation, device=self.device)
        if self.adapter is not None:
            model, versions[self.adapter] = merge_adapter(model, self.adapter, name, log)
        set_template(tokenizer, self.chat_template, (pair.prompt for pair in (*train, *heldout)), log, name)
        prompt_format = PromptFormat(self.system_prompt, self.chat_template_kwargs or {})
        prompt_format.check(tokenizer)
        if self.chat_template is not None and Path(self.chat_template).is_file():
            versions[self.chat_template] = version_of(Path(self.chat_template))
        return make_chat_assets(
            model,
            tokenizer,
            train,
            heldout,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            reward_model=reward_model,
            gold_reward_model=gold_reward_model,
            versions={key.partition("@")[0]: version for key, version in versions.items()},
            log=log,
            data=str(self.data),
            prompt_format=prompt_format,
        )
