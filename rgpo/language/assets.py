"""What a language task works with, however it was come by: model, tokenizer, prompts and the judges of a completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rgpo.errors import NonFiniteError

Array = npt.NDArray[np.float64]
Say = Callable[[str], None]
Scorer = Callable[[Sequence[str], Sequence[str]], Array]  # prompts' and completions' texts -> scores (N,), more is better


@dataclass(frozen=True)
class Prompt:
    """One prompt: what a person reads, and what the model reads (chat template applied, the assistant's turn begun)."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Materials:
    """Everything that a source loads; the model is as it was saved, in eval mode and without adapters."""

    model: Any
    tokenizer: Any
    eos_id: int  # ends a completion
    pad_id: int  # fills batches; may equal eos_id, since masks tell them apart
    train_prompts: list[Prompt]
    heldout_prompts: list[Prompt]
    num_dropped: int  # prompts too long for the source's limits: left out whole, none is cut
    proxy: Scorer  # the policy learns from it
    gold: Scorer | None  # no policy sees it


class Source(Protocol):
    """What conf/scale/*.yaml names as task.source."""

    def check(self) -> None:
        """Refuse, before anything starts and without importing torch, what cannot work. ConfigError."""

    def load(self, say: Say) -> Materials:
        """Load, after whatever is slow and done once; what goes on is said. ConfigError."""


def require_finite_scores(scores: Array, texts: Sequence[str], who: str) -> Array:
    """The scores (N,) as they are; NonFiniteError, with the end of its text, for NaN or an infinite one."""
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        raise NonFiniteError(
            f"reward: {who} gives {scores[wrong[0]]} for the text that ends in {texts[wrong[0]][-80:]!r}; "
            "look for NaN in its weights, or load it with dtype=float32."
        )
    return scores
