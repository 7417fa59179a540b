"""Scale paper: a chat model, HH-RLHF data and a reward model from the hub or from local folders in the same format.

Tested with tiny random checkpoints in exactly the hub's format; the default models were never run here.
"""

from __future__ import annotations

from dataclasses import dataclass

from rgpo.errors import require
from rgpo.language.assets import LanguageAssets, Log
from rgpo.language.data.chat import make_chat_assets
from rgpo.language.data.hh_rlhf import check_data, load_pairs, split_by_dialogue
from rgpo.language.policy.pretrained import ATTENTIONS, DTYPES, check_path, load_causal_lm, require_packages
from rgpo.language.rewards.reward_model import ChatRewardModel


@dataclass(kw_only=True)
class Hub:
    """Loads hub ids or paths; the fields are explained in conf/scale/paper.yaml."""

    model: str
    data: str | None
    reward_model: str
    gold_model: str | None
    max_prompt_tokens: int
    max_new_tokens: int
    heldout_share: float
    split_seed: int
    dtype: str
    reward_dtype: str
    reward_batch_size: int
    attn_implementation: str
    trust_remote_code: bool
    device: str

    def __post_init__(self) -> None:
        for key in ("max_prompt_tokens", "max_new_tokens", "reward_batch_size"):
            require(getattr(self, key) > 0, f"task.source.{key}", getattr(self, key), "must be positive.")
        require(0 < self.heldout_share < 1, "task.source.heldout_share", self.heldout_share, "must be strictly between 0 and 1.")
        for key in ("dtype", "reward_dtype"):
            require(getattr(self, key) in DTYPES, f"task.source.{key}", getattr(self, key), f"choose one of {', '.join(DTYPES)}.")
        name = self.attn_implementation
        require(name in ATTENTIONS, "task.source.attn_implementation", name, f"choose one of {', '.join(ATTENTIONS)}.")

    def check(self) -> None:
        """Check packages and paths; hub ids are looked up on loading.

        Raises: ConfigError if a package, file or folder is missing.
        """
        require_packages("task.source", "transformers", "tokenizers", "safetensors")
        for key in ("model", "reward_model", "gold_model"):
            value = getattr(self, key)
            if value is not None:
                check_path(f"task.source.{key}", value, self.trust_remote_code)
        check_data(self.data)

    def load(self, log: Log) -> LanguageAssets:
        """Download what is not in Hugging Face's cache, load it and encode the prompts.

        Raises: ConfigError if something cannot be downloaded, read or used.
        """
        assert self.data is not None
        pairs, _ = load_pairs(self.data, log)
        train, heldout = split_by_dialogue(pairs, (1 - self.heldout_share, self.heldout_share), self.split_seed)
        log(f"loading {self.model} ({self.dtype})")
        model, tokenizer = load_causal_lm(
            self.model,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
            device=self.device,
        )
        return make_chat_assets(
            model,
            tokenizer,
            train,
            heldout,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            reward_model=self._load_reward_model("reward_model", self.reward_model, log),
            gold_reward_model=None if self.gold_model is None else self._load_reward_model("gold_model", self.gold_model, log),
            log=log,
        )

    def _load_reward_model(self, key: str, path_or_id: str, log: Log) -> ChatRewardModel:
        log(f"loading {path_or_id} ({self.reward_dtype})")
        return ChatRewardModel(
            f"task.source.{key}",
            path_or_id,
            dtype=self.reward_dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            batch_size=self.reward_batch_size,
            log=log,
        )
