"""Scale paper: a model, prompts or pairs, and a reward model from the hub or from local folders in the same format.

A hub id may name a branch, tag or commit, as in Qwen/Qwen2.5-1.5B-Instruct@main; the commits that were used, and digests
of local files, are recorded.

Tested with tiny random checkpoints in exactly the hub's format; the default models were never run here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rgpo.core.ranges import FRACTION, MANY, check_fields, count, one_of
from rgpo.errors import require
from rgpo.language.assets import LanguageAssets, Log
from rgpo.language.data.chat import make_chat_assets
from rgpo.language.data.dataset import check_data, check_eval_data, load_dataset, split_by_dialogue
from rgpo.language.data.template import PromptFormat, check_template, set_template
from rgpo.language.policy.adapter import check_adapter, merge_adapter
from rgpo.language.policy.model_files import ATTENTIONS, check_path, resolve_folder, version_of
from rgpo.language.policy.pretrained import DEVICE, DTYPES, load_causal_lm, require_packages
from rgpo.language.rewards.reward_model import ChatRewardModel


@dataclass(kw_only=True)
class Hub:
    """Loads hub ids or paths; the fields are explained in conf/scale/paper.yaml."""

    model: str
    data: str | None
    reward_model: str | None
    gold_model: str | None
    max_prompt_tokens: int = field(metadata=count(MANY))
    max_new_tokens: int = field(metadata=count(MANY))
    heldout_share: float = field(metadata=FRACTION)
    split_seed: int
    dtype: str = field(metadata=one_of(*DTYPES))
    reward_dtype: str = field(metadata=one_of(*DTYPES))
    reward_batch_size: int = field(metadata=count(MANY))
    attn_implementation: str = field(metadata=one_of(*ATTENTIONS))
    device: str = field(metadata=DEVICE)
    eval_data: str | None = None
    adapter: str | None = None
    chat_template: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, object] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "task.source")

    def check(self, reward_model: bool = True) -> None:
        """Check packages and paths; hub ids are looked up on loading.

        Raises: ConfigError if a package, file or folder is missing.
        """
        require_packages("task.source", "transformers", "tokenizers", "safetensors")
        missing = reward_model and self.reward_model is None
        remedy = "give a reward model, or a function with task.reward=file.py:function."
        require(not missing, "task.source.reward_model", "null", remedy)
        for key in ("model", *(["reward_model"] if reward_model else []), "gold_model"):
            value = getattr(self, key)
            if value is not None:
                check_path(f"task.source.{key}", value)
        check_data(self.data)
        check_eval_data(self.eval_data)
        check_template(self.chat_template)
        if self.adapter is not None:
            check_adapter(self.adapter)

    def load(self, log: Log, reward_model: bool = True) -> LanguageAssets:
        """Download what is not in Hugging Face's cache, load it and encode the prompts.

        Raises: ConfigError if something cannot be downloaded, read or used.
        """
        assert self.data is not None
        data = load_dataset(self.data, self.eval_data, log)
        train, heldout = split_by_dialogue(data.pairs, (1 - self.heldout_share, self.heldout_share), self.split_seed)
        log(f"loading {self.model} ({self.dtype})")
        folder = resolve_folder("task.source.model", self.model)
        model, tokenizer = load_causal_lm(
            folder, dtype=self.dtype, attn_implementation=self.attn_implementation, device=self.device
        )
        versions = {self.data: version_of(*data.files), self.model: version_of(folder)}
        versions |= {str(self.eval_data): version_of(*data.eval_files)} if data.eval_files else {}
        if self.adapter is not None:
            model, versions[self.adapter] = merge_adapter(model, self.adapter, self.model, log)
        set_template(tokenizer, self.chat_template, (pair.prompt for pair in data.pairs), log, self.model)
        prompt_format = PromptFormat(self.system_prompt, self.chat_template_kwargs or {})
        prompt_format.check(tokenizer)
        if self.chat_template is not None and Path(self.chat_template).is_file():
            versions[self.chat_template] = version_of(Path(self.chat_template))
        judge = None
        if reward_model:
            assert self.reward_model is not None
            judge = self._load_reward_model("reward_model", self.reward_model, log)
            versions[self.reward_model] = judge.model.version
        gold = None if self.gold_model is None else self._load_reward_model("gold_model", self.gold_model, log)
        versions |= {} if gold is None else {str(self.gold_model): gold.model.version}
        return make_chat_assets(
            model,
            tokenizer,
            train,
            heldout,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            reward_model=judge,
            gold_reward_model=gold,
            versions={name.partition("@")[0]: version for name, version in versions.items()},
            log=log,
            data=self.data,
            prompt_format=prompt_format,
        )

    def _load_reward_model(self, key: str, path_or_id: str, log: Log) -> ChatRewardModel:
        log(f"loading {path_or_id} ({self.reward_dtype})")
        return ChatRewardModel(
            f"task.source.{key}",
            path_or_id,
            dtype=self.reward_dtype,
            device=self.device,
            batch_size=self.reward_batch_size,
            log=log,
        )
