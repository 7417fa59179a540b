"""Completions as samples: a rollout with what was computed of its tokens at collection, and the batch that updates read.

Names: B completions of a rollout, P longest prompt, T longest completion, S = P + T; N completion tokens in all, row by row; n of
them in a micro-batch; M of them with stored distributions over the vocabulary V (rgpo.language.policy.packing).
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
    """A forward pass at a micro-batch's n tokens."""

    logp_n: Tensor
    entropy_n: Tensor
    hidden_nD: Tensor


class OldLogprobs(NamedTuple):
    """Numbers of the N tokens that collection computes, in the forward passes that learning will repeat."""

    minibatches: list[list[Tensor]]  # completions (b,) of the micro-batches of each minibatch
    logp_old_N: Tensor  # nats
    logp_ref_N: Tensor  # nats
    value_N: Tensor
    stored: StoredDistributions


@dataclass(kw_only=True)
class CompletionRollout(Rollout):
    """Completions as a rollout of T steps in B environments."""

    completions: Completions
    old: OldLogprobs
    correction_N: Tensor  # truncated weight of a token that another engine than the learner drew, else 1

    def with_old(self, old: OldLogprobs, sampling: Sampling) -> CompletionRollout:
        """With another old policy, and the correction for the one that drew the completions (decoupled PPO, arXiv 2110.00641)."""
        correction_N = sampler_correction(old.logp_old_N, self.completions, sampling)
        return replace(self, old=old._replace(value_N=self.old.value_N), correction_N=correction_N)

    def groups(self) -> Array:
        """Completions (M, b) of at least 2 and at most 32 disjoint groups of whole prompts, for the gradient's variance."""
        num_prompts = self.reward.shape[1] // self.group_size
        per_group = -(-num_prompts // 32)
        size = per_group * self.group_size
        return np.arange(num_prompts // per_group * size).reshape(-1, size)


@dataclass(frozen=True)
class TokenBatch:
    """N tokens to learn from."""

    completions: Completions
    micro_batches: list[list[MicroBatch]]  # of each minibatch, over all processes
    stored: StoredDistributions
    sequence_ratio: bool  # whether the loss of a token depends on the others of its completion
    samples: Samples

    @property
    def num_kl(self) -> int:
        """M, the tokens with a stored distribution."""
        return len(self.stored.tokens_M)

    def minibatches(self) -> list[Minibatch]:
        """The minibatches of collection, with this process's micro-batches of each."""
        return [Minibatch(torch.cat([m.tokens_n for m in part]), local_micro_batches(part)) for part in self.micro_batches]

    def at(self, view: View) -> Samples:
        """The samples of one micro-batch."""
        assert isinstance(view, MicroBatch)
        return self.samples.at(view.tokens_n, view.live_bt if self.sequence_ratio else None)

    def with_advantage(self, advantage: Tensor) -> TokenBatch:
        """The same tokens with another advantage (N,)."""
        return replace(self, samples=self.samples._replace(advantage=advantage))


def token_weights(completions: Completions, minibatches: list[list[Tensor]], sampling: Sampling) -> Tensor:
    """(N,): the weight of each token in the reduction over its minibatch.

    With mask_truncated, tokens of completions that were cut by the length limit have weight 0, and count as no tokens.
    """
    reduction, mask_truncated = sampling.reduction, sampling.mask_truncated
    mask_BT = completions.completion_mask_BT.to(torch.float32)
    if mask_truncated:
        mask_BT = mask_BT * completions.finished_B[:, None]
    weight_BT = torch.zeros_like(mask_BT)
    for parts in minibatches:
        index = torch.cat(parts)
        weight_BT[index] = REDUCTIONS[reduction](mask_BT[index]).nan_to_num()  # 0/0 of a row or minibatch without tokens
    if reduction == "constant":
        weight_BT /= sampling.max_new_tokens
    return weight_BT[completions.completion_mask_BT.bool()]


def to_tokens(x_TB: Array, completions: Completions) -> Tensor:
    """(N,) float32 of an array over steps and environments."""
    mask_BT = completions.completion_mask_BT.bool()
    x_BT = np.array(x_TB.T, np.float32, order="C")  # a copy always: torch takes no negative strides, not even of a length-1 axis
    return torch.from_numpy(x_BT).to(mask_BT.device)[mask_BT]


def to_rows(x_N: Tensor, completions: Completions) -> Tensor:
    """(B, T): each token's number in its place, 0 under padding."""
    mask_BT = completions.completion_mask_BT.bool()
    return torch.zeros(mask_BT.shape, dtype=x_N.dtype, device=x_N.device).masked_scatter(mask_BT, x_N)


def sampler_gap(logp_old_N: Tensor, completions: Completions) -> Tensor:
    """(N,) log pi_old - log pi_sampler of the tokens, nats: rounding where the policy drew them itself."""
    return logp_old_N - completions.logp_BT[completions.completion_mask_BT.bool()]


def sampler_correction(logp_old_N: Tensor, completions: Completions, sampling: Sampling) -> Tensor:
    """(N,) the tokens' weights of the correction; min(pi_old/pi_sampler, cap) with a cap of the sampler alone."""
    gap_N = sampler_gap(logp_old_N, completions)
    if sampling.correction_cap is not None:
        return gap_N.exp().clamp(max=sampling.correction_cap)
    return sampling.correction.weights(gap_N, completions.completion_mask_BT.bool())


def reference_kl(old: OldLogprobs, completions: Completions) -> dict[str, float]:
    """kl/ref_k1, k2 and k3 with standard errors: estimates of KL(policy || reference) from samples of the policy."""
    metrics, x = {}, old.logp_ref_N - old.logp_old_N
    for name, estimator in (("k1", k1), ("k2", k2), ("k3", k3)):
        metrics[f"kl/ref_{name}"], metrics[f"kl/ref_{name}_se"] = clustered_mean(estimator(x), completions)
    return metrics


def clustered_mean(x_N: Tensor, completions: Completions) -> tuple[float, float]:
    """Mean over tokens, and its standard error with whole completions as the independent samples (a ratio of means)."""
    total_B = to_rows(x_N.double(), completions).sum(-1)
    length_B = completions.completion_mask_BT.sum(-1).double()
    mean = total_B.sum() / length_B.sum()
    count = len(total_B)
    spread = (total_B - mean * length_B).square().sum() * count / max(count - 1, 1)
    return mean.item(), (spread.sqrt() / length_B.sum()).item()


def _gathered(stored: StoredDistributions) -> StoredDistributions:
    """The stored tokens with the distributions that any process holds."""
    columns = zip(*distributed.all_gather(tuple(x.cpu() for x in stored[1:])), strict=True)
    tokens, old, ref = (torch.cat(column).to(stored.tokens_M.device) for column in columns)
    order = tokens.argsort()
    return StoredDistributions(stored.tokens_M, tokens[order], old[order], ref[order])


STEPS = ("reward", "value", "next_value", "terminated", "done", "mask")


def rollout_state(rollout: CompletionRollout) -> State:
    """The rollout as tensors, lists and numbers, for a checkpoint."""
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
