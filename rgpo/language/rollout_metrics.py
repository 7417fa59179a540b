"""Metrics of a rollout (scores, lengths, KL(policy || reference), sampler rounding errors) and its rows for rollouts.parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rgpo.core.advantages import zero_variance_groups
from rgpo.core.rollout import Array
from rgpo.language.policy.token_batch import reference_kl, sampler_gap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rgpo.language.assets import Prompt
    from rgpo.language.policy.generation import Completions
    from rgpo.language.policy.token_batch import OldLogprobs


def describe_rollout(
    score: Array, completions: Completions, old: OldLogprobs, *, group_size: int, on_policy: bool
) -> dict[str, float]:
    """Metrics of completions with scores (B,); on_policy: whether the policy sampled them."""
    metrics = {
        "reward/train_mean": float(score.mean()),
        "reward/train_std": float(score.std()),
        "language/num_tokens": float(completions.completion_mask_BT.sum()),
        "language/num_prompt_tokens": float(completions.prompt_lengths_B.sum()),
        "language/length_mean": float(completions.completion_mask_BT.sum(-1).double().mean()),
        "language/truncated_share": float((~completions.finished_B).double().mean()),
    }
    gap = sampler_gap(old.logp_old_N, completions).abs()
    if not bool(gap.isnan().any()):  # NaN for stored completions, which have no sampler
        metrics |= {"sampler/log_ratio_abs_mean": float(gap.mean()), "sampler/log_ratio_abs_max": float(gap.max())}
    if group_size > 1:
        metrics["language/zero_variance_group_share"] = float(zero_variance_groups(score, group_size).mean())
    if on_policy:
        metrics |= reference_kl(old, completions)
    return metrics


def rollout_rows(
    prompts: Sequence[Prompt],
    score: Array,
    parts: Mapping[str, Array],
    completions: Completions,
    kl_BT: Array,
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict[str, object]]:
    """One row per completion, whose text includes special tokens and the token that ended it; kl_BT: log pi/pi_ref (nats)."""
    from rgpo.language.policy.generation import completion_ids

    texts: list[str] = tokenizer.batch_decode(completion_ids(completions), skip_special_tokens=False)
    lengths, finished = completions.completion_mask_BT.sum(-1).tolist(), completions.finished_B.tolist()
    return [
        {
            "completion_id": i,
            "prompt": str(prompts[i].text),
            "completion": text,
            "reward": float(score[i]),
            **{f"reward/{name}": float(part[i]) for name, part in parts.items()},
            "kl_ref": float(kl_BT[i].sum()),
            "length": lengths[i],
            "finished": finished[i],
        }
        for i, text in enumerate(texts)
    ]
