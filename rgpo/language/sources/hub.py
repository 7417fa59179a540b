"""Scale paper: a model, prompts or pairs, and a reward model from the hub or from local folders in the same format.

A hub id may include a branch, tag or commit, as in Qwen/Qwen2.5-1.5B-Instruct@main; the commits used and the digests of
local files are recorded.

Tested with tiny random checkpoints in exactly the hub's format; we have never run the default models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rgpo.core.ranges import FRACTION, MANY, count, one_of
from rgpo.errors import require
from rgpo.language.assets import LanguageAssets, Log
from rgpo.language.data.dataset import split_by_dialogue
from rgpo.language.policy.model_files import ATTENTIONS, check_path, resolve_folder, version_of
from rgpo.language.policy.pretrained import DTYPES, require_packages
from rgpo.language.rewards.reward_model import ChatRewardModel
from rgpo.language.sources.chat_source import ChatSource


@dataclass(kw_only=True)
class Hub(ChatSource):
    """Loads hub ids or paths; the fields are explained in conf/scale/paper.yaml."""

    model: str
    reward_model: str | None
    gold_model: str | None
    heldout_share: float = field(metadata=FRACTION)
    reward_dtype: str = field(metadata=one_of(*DTYPES))
    reward_batch_size: int = field(metadata=count(MANY))
    attn_implementation: str = field(metadata=one_of(*ATTENTIONS))

    def check(self, reward_model: bool = True) -> None:
        """Check packages and paths; hub ids are only looked up on loading.

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
        self.check_paths()

    def load(self, log: Log, reward_model: bool = True) -> LanguageAssets:
        """Download everything not in Hugging Face's cache, load it and encode the prompts.

        Raises: ConfigError if something cannot be downloaded, read or used.
        """
        data, versions = self.load_data(log)
        train, heldout = split_by_dialogue(data.pairs, (1 - self.heldout_share, self.heldout_share), self.split_seed)
        folder = resolve_folder("task.source.model", self.model)
        versions[self.model] = version_of(folder)
        judge = None
        if reward_model:
            assert self.reward_model is not None
            judge = self._load_reward_model("reward_model", self.reward_model, log)
            versions[self.reward_model] = judge.model.version
        gold = None if self.gold_model is None else self._load_reward_model("gold_model", self.gold_model, log)
        versions |= {} if gold is None else {str(self.gold_model): gold.model.version}
        return self.load_assets(
            folder,
            self.model,
            train,
            heldout,
            reward_model=judge,
            gold_reward_model=gold,
            versions=versions,
            log=log,
            attn_implementation=self.attn_implementation,
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
