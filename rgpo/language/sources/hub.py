"""Scale paper: a chat model, HH-RLHF data and a reward model from the hub or from local folders in the same format.

A hub id may name a branch, tag or commit, as in Qwen/Qwen2.5-1.5B-Instruct@main; the commits that were used, and digests
of local files, are recorded.

Tested with tiny random checkpoints in exactly the hub's format; the default models were never run here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rgpo.core.ranges import FRACTION, MANY, check_fields, count, one_of
from rgpo.language.assets import LanguageAssets, Log
from rgpo.language.data.chat import make_chat_assets
from rgpo.language.data.hh_rlhf import check_data, load_pairs, split_by_dialogue
from rgpo.language.policy.model_files import ATTENTIONS, check_path, resolve_folder, version_of
from rgpo.language.policy.pretrained import DEVICE, DTYPES, load_causal_lm, require_packages
from rgpo.language.rewards.reward_model import ChatRewardModel


@dataclass(kw_only=True)
class Hub:
    """Loads hub ids or paths; the fields are explained in conf/scale/paper.yaml."""

    model: str
    data: str | None
    reward_model: str
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

    def __post_init__(self) -> None:
        check_fields(self, "task.source")

    def check(self) -> None:
        """Check packages and paths; hub ids are looked up on loading.

        Raises: ConfigError if a package, file or folder is missing.
        """
        require_packages("task.source", "transformers", "tokenizers", "safetensors")
        for key in ("model", "reward_model", "gold_model"):
            value = getattr(self, key)
            if value is not None:
                check_path(f"task.source.{key}", value)
        check_data(self.data)

    def load(self, log: Log) -> LanguageAssets:
        """Download what is not in Hugging Face's cache, load it and encode the prompts.

        Raises: ConfigError if something cannot be downloaded, read or used.
        """
        assert self.data is not None
        pairs, files = load_pairs(self.data, log)
        train, heldout = split_by_dialogue(pairs, (1 - self.heldout_share, self.heldout_share), self.split_seed)
        log(f"loading {self.model} ({self.dtype})")
        folder = resolve_folder("task.source.model", self.model)
        model, tokenizer = load_causal_lm(
            folder, dtype=self.dtype, attn_implementation=self.attn_implementation, device=self.device
        )
        reward_model = self._load_reward_model("reward_model", self.reward_model, log)
        gold = None if self.gold_model is None else self._load_reward_model("gold_model", self.gold_model, log)
        versions = {self.data: version_of(*files), self.model: version_of(folder), self.reward_model: reward_model.model.version}
        versions |= {} if gold is None else {str(self.gold_model): gold.model.version}
        return make_chat_assets(
            model,
            tokenizer,
            train,
            heldout,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            reward_model=reward_model,
            gold_reward_model=gold,
            versions={name.partition("@")[0]: version for name, version in versions.items()},
            log=log,
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
