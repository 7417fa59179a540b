"""Scale paper: any chat model, HH-RLHF data and reward model of the hub, or local folders of the same format.

The defaults' weights were never run here; what was, is tiny checkpoints with random weights in exactly their format.
"""

from __future__ import annotations

from dataclasses import dataclass

from rgpo.errors import require
from rgpo.language.assets import Materials, Say
from rgpo.language.data.chat import ChatReward, assemble
from rgpo.language.data.hh_rlhf import check_data, load_pairs, split
from rgpo.language.policy.pretrained import ATTENTIONS, DTYPES, check_path, load_causal_lm, require_packages


@dataclass(kw_only=True)
class Hub:
    """A source whose parts are hub ids or paths; comments in conf/scale/paper.yaml."""

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
        require(0 < self.heldout_share < 1, "task.source.heldout_share", self.heldout_share, "must lie strictly between 0 and 1.")
        for key in ("dtype", "reward_dtype"):
            require(getattr(self, key) in DTYPES, f"task.source.{key}", getattr(self, key), f"choose one of {', '.join(DTYPES)}.")
        name = self.attn_implementation
        require(name in ATTENTIONS, "task.source.attn_implementation", name, f"choose one of {', '.join(ATTENTIONS)}.")

    def check(self) -> None:
        """Packages, and whatever is a path; a hub id is looked up when it is loaded. ConfigError."""
        require_packages("task.source", "transformers", "tokenizers", "safetensors")
        for key in ("model", "reward_model", "gold_model"):
            value = getattr(self, key)
            if value is not None:
                check_path(f"task.source.{key}", value, self.trust_remote_code)
        check_data(self.data)

    def load(self, say: Say) -> Materials:
        """Fetch what is not in Hugging Face's cache, load it and encode the prompts. ConfigError."""
        assert self.data is not None
        pairs, _ = load_pairs(self.data, say)
        train, heldout = split(pairs, (1 - self.heldout_share, self.heldout_share), self.split_seed)
        say(f"loading {self.model} ({self.dtype})")
        model, tokenizer = load_causal_lm(
            self.model,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            attn_implementation=self.attn_implementation,
            device=self.device,
        )
        proxy = self._judge("reward_model", self.reward_model, say)
        gold = None if self.gold_model is None else self._judge("gold_model", self.gold_model, say)
        return assemble(
            model,
            tokenizer,
            train,
            heldout,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            proxy=proxy,
            gold=gold,
            say=say,
        )

    def _judge(self, key: str, path_or_id: str, say: Say) -> ChatReward:
        say(f"loading {path_or_id} ({self.reward_dtype})")
        return ChatReward(
            f"task.source.{key}",
            path_or_id,
            dtype=self.reward_dtype,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            batch_size=self.reward_batch_size,
        )
