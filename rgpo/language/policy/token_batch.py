"""Completions as samples: a rollout with the per-token quantities computed at collection, and the batch used by updates.

Names: B completions of a rollout, P longest prompt, T longest completion, S = P + T; N completion tokens in total, row by row; n
of them in a micro-batch; M of them with stored distributions over the vocabulary V (rgpo.language.policy.packing).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rgpo import distributed
from rgpo.core.divergences import k1, k2, k3
from rgpo.core.rollout import Array, Rollout
from rgpo.core.sequence import REDUCTIONS
from rgpo.language.policy.generation import Completions, Sampling
from rgpo.language.policy.packing import MicroBatch, StoredDistributions, local_micro_batches
from rgpo.learning.samples import Samples
from rgpo.learning.types import Minibatch, State, View


class TokenOutputs(NamedTuple):
    """Outputs of a forward pass at a micro-batch's n tokens."""

    logp_n: Tensor
    entropy_n: Tensor
    hidden_nD: Tensor


class OldLogprobs(NamedTuple):
    """Quantities of the N tokens computed at collection, in the same forward passes that learning will use."""

    minibatches: list[list[Tensor]]  # minibatch -> micro-batch -> indices of completions (b,)
    logp_old_N: Tensor  # nats
    logp_ref_N: Tensor  # nats
    value_N: Tensor
    stored: StoredDistributions


@dataclass(kw_only=True)
class CompletionRollout(Rollout):
    """Completions as a rollout of T steps in B environments."""

    completions: Completions
    old: OldLogprobs
    correction_N: Tensor  # truncated weight of a token sampled by an engine other than the learner, else 1

    def with_old(self, old: OldLogprobs, sampling: Sampling) -> CompletionRollout:
        """Replace the old policy, and correct for the one that sampled the completions (decoupled PPO, arXiv 2110.00641)."""
        correction_N = sampler_correction(old.logp_old_N, self.completions, sampling)
        return replace(self, old=old._replace(value_N=self.old.value_N), correction_N=correction_N)

    def groups(self) -> Array:
        """Split completions into M <= 32 disjoint groups (M, b) of whole prompts, to estimate the gradient's variance."""
        num_prompts = self.reward.shape[1] // self.group_size
        per_group = -(-num_prompts // 32)
        size = per_group * self.group_size
        return np.arange(num_prompts // per_group * size).reshape(-1, size)


@dataclass(frozen=True)
class TokenBatch:
    """N tokens to learn from."""

    completions: Completions
    micro_batches: list[list[MicroBatch]]  # per minibatch, for all processes
    stored: StoredDistributions
    sequence_ratio: bool  # whether a token's loss depends on the other tokens of its completion
    samples: Samples

    @property
    def num_kl(self) -> int:
        """M, the number of tokens with a stored distribution."""
        return len(self.stored.tokens_M)

    def minibatches(self) -> list[Minibatch]:
        """The minibatches from collection, with this process's micro-batches."""
        return [Minibatch(torch.cat([m.tokens_n for m in part]), local_micro_batches(part)) for part in self.micro_batches]

    def at(self, view: View) -> Samples:
        """The samples of one micro-batch."""
        assert isinstance(view, MicroBatch)
        return self.samples.at(view.tokens_n, view.live_bt if self.sequence_ratio else None)

    def with_advantage(self, advantage: Tensor) -> TokenBatch:
        """The same tokens with another advantage (N,)."""
        return replace(self, samples=self.samples._replace(advantage=advantage))


def token_weights(completions: Completions, minibatches: list[list[Tensor]], sampling: Sampling) -> Tensor:
    """Weight (N,) of each token in the reduction over its minibatch.

    With mask_truncated, tokens of completions cut by the length limit have weight 0 and are not counted.
    """
    reduction, mask_truncated = sampling.reduction, sampling.mask_truncated
    mask_BT = completions.completion_mask_BT.to(torch.float32)
    if mask_truncated:
        mask_BT = mask_BT * completions.finished_B[:, None]
    weight_BT = torch.zeros_like(mask_BT)
    for parts in minibatches:
        index = torch.cat(parts)
        weight_BT[index] = REDUCTIONS[reduction](mask_BT[index]).nan_to_num()  # 0/0 for a row or minibatch without tokens
    if reduction == "constant":
        weight_BT /= sampling.max_new_tokens
    return weight_BT[completions.completion_mask_BT.bool()]


def to_tokens(x_TB: Array, completions: Completions) -> Tensor:
    """Convert an array (T, B) over steps and environments to tokens (N,) float32."""
    mask_BT = completions.completion_mask_BT.bool()
    x_BT = np.array(x_TB.T, np.float32, order="C")  # always a copy: torch rejects negative strides, even for an axis of length 1
    return torch.from_numpy(x_BT).to(mask_BT.device)[mask_BT]


def to_rows(x_N: Tensor, completions: Completions) -> Tensor:
    """Arrange per-token values (N,) as (B, T), with 0 on padding."""
    mask_BT = completions.completion_mask_BT.bool()
    return torch.zeros(mask_BT.shape, dtype=x_N.dtype, device=x_N.device).masked_scatter(mask_BT, x_N)


def sampler_gap(logp_old_N: Tensor, completions: Completions) -> Tensor:
    """log pi_old - log pi_sampler (N,) of the tokens, nats; only rounding errors if the policy sampled them itself."""
    return logp_old_N - completions.logp_BT[completions.completion_mask_BT.bool()]


def sampler_correction(logp_old_N: Tensor, completions: Completions, sampling: Sampling) -> Tensor:
    """Correction weights (N,) of the tokens: min(pi_old/pi_sampler, cap) if the sampler has a cap, else task.correction's."""
    gap_N = sampler_gap(logp_old_N, completions)
    if sampling.correction_cap is not None:
        return gap_N.exp().clamp(max=sampling.correction_cap)
    return sampling.correction.weights(gap_N, completions.completion_mask_BT.bool())


def reference_kl(old: OldLogprobs, completions: Completions) -> dict[str, float]:
    """Metrics kl/ref_k1, k2 and k3 with standard errors: estimates of KL(policy || reference) from the policy's samples."""
    metrics, x = {}, old.logp_ref_N - old.logp_old_N
    for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
        metrics[f"kl/ref_{name}"], metrics[f"kl/ref_{name}_se"] = clustered_mean(estimator(x), completions)
    return metrics


def clustered_mean(x_N: Tensor, completions: Completions) -> tuple[float, float]:
    """Mean over tokens, and its standard error with completions as independent samples (ratio of means)."""
    total_B = to_rows(x_N.double(), completions).sum(-1)
    length_B = completions.completion_mask_BT.sum(-1).double()
    mean = total_B.sum() / length_B.sum()
    count = len(total_B)
    spread = (total_B - mean * length_B).square().sum() * count / max(count - 1, 1)
    return mean.item(), (spread.sqrt() / length_B.sum()).item()


def _gathered(stored: StoredDistributions) -> StoredDistributions:
    """The stored tokens with the distributions of all processes."""
    columns = zip(*distributed.all_gather(tuple(x.cpu() for x in stored[1:])), strict=True)
    tokens, old, ref = (torch.cat(column).to(stored.tokens_M.device) for column in columns)
    order = tokens.argsort()
    return StoredDistributions(stored.tokens_M, tokens[order], old[order], ref[order])


STEPS = ("reward", "value", "next_value", "terminated", "done", "mask")


def rollout_state(rollout: CompletionRollout) -> State:
    """Convert a rollout to tensors, lists and numbers for a checkpoint."""
    old = rollout.old
    return {
        "steps": {name: torch.from_numpy(getattr(rollout, name)) for name in STEPS},
        "group_size": rollout.group_size,
        "metrics": rollout.metrics,
        "rows": list(rollout.rows),
        "completions": list(rollout.completions),
        "minibatches": old.minibatches,
        "tokens": [old.logp_old_N, old.logp_ref_N, old.value_N, rollout.correction_N],
        "stored": list(_gathered(old.stored)),
    }


def restore_rollout(state: State) -> CompletionRollout:
    """The inverse of ``rollout_state``."""
    logp_old, logp_ref, value, correction = cast(list[Tensor], state["tokens"])
    minibatches = cast(list[list[Tensor]], state["minibatches"])
    steps = {name: x.numpy() for name, x in cast(dict[str, Tensor], state["steps"]).items()}
    return CompletionRollout(
        **steps,
        group_size=cast(int, state["group_size"]),
        metrics=cast(dict[str, float], state["metrics"]),
        rows=cast(list[dict[str, object]], state.get("rows", [])),
        completions=Completions(*cast(list[Tensor], state["completions"])),
        old=OldLogprobs(minibatches, logp_old, logp_ref, value, StoredDistributions(*cast(list[Tensor], state["stored"]))),
        correction_N=correction,
    )
