"""Offline preference data of the embedded scale: two samples of the reference model per prompt, ranked by the reward model.

The rated sentences cannot be used as pairs: only 50 three-word beginnings in the policy's 2,145 sentences have two continuations
with different ratings. The labels are therefore the reward model's, not people's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rgpo.language.assets import PreferencePair, Prompt, RewardFunction
from rgpo.language.evaluation import decode_completions
from rgpo.language.policy.generation import completion_ids, generate
from rgpo.language.policy.pretrained import load_causal_lm
from rgpo.language.policy.stopping import StopRule
from rgpo.language.sources.embedded.training import reproducible

SEED = 0
CHUNK = 256  # prompts per batch


def sample_pairs(
    model_folder: Path, prompts: Sequence[Prompt], reward_model: RewardFunction, max_new_tokens: int
) -> list[PreferencePair]:
    """One pair per prompt: two completions at temperature 1 with a fixed seed, the higher-scoring one first.

    Ties are dropped. The model is loaded from its folder, so that the pairs do not depend on later training.
    """
    model, tokenizer = load_causal_lm(model_folder, dtype="float32", device="cpu")
    stop, generator = StopRule(frozenset([tokenizer.eos_token_id])), torch.Generator().manual_seed(SEED)
    pairs = []
    with reproducible(SEED):
        for start in range(0, len(prompts), CHUNK):
            twice = [prompt for prompt in prompts[start : start + CHUNK] for _ in range(2)]
            completions = generate(
                model,
                [prompt.ids for prompt in twice],
                max_new_tokens=max_new_tokens,
                temperature=1.0,
                stop=stop,
                pad_id=tokenizer.pad_token_id,
                generator=generator,
            )
            ids = completion_ids(completions)
            score = reward_model([prompt.text for prompt in twice], decode_completions(completions, tokenizer, stop))
            for i in range(0, len(twice), 2):
                if score[i] != score[i + 1]:
                    better, worse = (i, i + 1) if score[i] > score[i + 1] else (i + 1, i)
                    pairs.append(PreferencePair(twice[i], ids[better], ids[worse]))
    return pairs
