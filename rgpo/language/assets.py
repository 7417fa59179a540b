"""Model, tokenizer, prompts and reward models of a language task, and the interface that loads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rgpo.core.rollout import Array
from rgpo.errors import NonFiniteError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Log = Callable[[str], None]  # prints one line of progress
RewardFunction = Callable[
    [Sequence[str], Sequence[str]], Array
]  # (prompts, completions) as text -> scores (N,), higher is better


@dataclass(frozen=True)
class Prompt:
    """A prompt's text, and its token ids under the chat template up to the start of the answer."""

    text: str
    ids: list[int]
    columns: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)  # its row in the data set


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to a prompt, the better one first; ids end with eos unless max_new_tokens cut the answer."""

    prompt: Prompt
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True)
class LanguageAssets:
    """Everything that an AssetLoader loads; the model is as saved, in eval mode and without adapters."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_id: int  # ends a completion and is appended to stored answers
    pad_id: int  # pads batches; may equal eos_id, since masks distinguish them
    train_prompts: list[Prompt]
    heldout_prompts: list[Prompt]
    num_dropped: int  # number of prompts longer than the loader's limit; dropped, never cut
    reward_model: RewardFunction | None  # trains the policy; None if not needed
    gold_reward_model: RewardFunction | None  # measures over-optimization; never used in training
    preference_pairs: Callable[[int], Sequence[PreferencePair]]  # function of max_new_tokens; cached
    versions: Mapping[str, str] = field(default_factory=dict)  # commit, or sha256 of downloaded or built files
    stop_ids: frozenset[int] = frozenset()  # additional tokens that end a completion


class AssetLoader(Protocol):
    """Interface of task.source, whose classes are named in conf/scale/*.yaml."""

    def check(self, reward_model: bool = True) -> None:
        """Check packages and paths before torch is imported; reward_model: whether a reward model is needed.

        Raises: ConfigError if a package or a path is missing.
        """
        ...

    def load(self, log: Log, reward_model: bool = True) -> LanguageAssets:
        """Load everything; reward_model: whether a reward model is needed. Slow preparation is done once and cached.

        Raises: ConfigError if something cannot be fetched, read or used.
        """
        ...


def log_line(line: str) -> None:
    """Print one line of progress."""
    print(f"  {line}", flush=True)


def require_finite_scores(scores: Array, texts: Sequence[str], name: str) -> Array:
    """Return the scores (N,) unchanged after checking them.

    Raises: NonFiniteError, which quotes the end of the text, if a score is NaN or infinite.
    """
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise NonFiniteError(
            f"reward: {name} gives {scores[wrong[0]]} for the text that ends in {texts[wrong[0]][-80:]!r}; "
            "look for NaN in its weights, or load it with dtype=float32."
        )
    return scores


def require_same_versions(source: AssetLoader, versions: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Raises: ConfigError if a model or data set differs from the one used when a checkpoint was written."""
    fields = getattr(source, "__dict__", {})
    keys = {str(value).partition("@")[0]: f"task.source.{key}" for key, value in fields.items()}
    for name, version in versions.items():
        saved = before.get(name, version)
        remedy = f"is {version} and was {saved} when the checkpoint was saved; restore it"
        remedy += ", or use force=true." if len(saved) == 64 else f", pin it by {name}@{saved}, or use force=true."
        key = "task.reward" if ".py:" in name else "task.source"
        require(saved == version, keys.get(name, key), name, remedy)
