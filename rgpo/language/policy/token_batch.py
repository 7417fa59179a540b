"""Completions as something to learn from: which rows share a minibatch, and what was known of their tokens at collection.

Names: B completions of a rollout, P longest prompt, T longest completion, S = P + T; N completion tokens in all, row by row; n of
them in a piece (rgpo.language.policy.packing); M of them are kept tokens, whose distributions over the vocabulary V are remembered for
exact KL divergences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rgpo import distributed
from rgpo.core.rollout import Array, Rollout
from rgpo.core.surrogate import REDUCTIONS
from rgpo.language.policy.generation import Completions
from rgpo.language.policy.packing import Piece


class Seen(NamedTuple):
    """What one forward pass says of a piece's n tokens."""

    logp_n: Tensor
    entropy_n: Tensor
    value_n: Tensor  # V of the state before each token; 0 without a critic
    hidden_nD: Tensor


class Kept(NamedTuple):
    """Tokens whose whole distributions were kept when the rollout was collected."""

    tokens_M: Tensor  # int64, ascending, places among the N
    tokens_K: Tensor  # those of them whose distributions this process holds; all M where there is one process
    logp_old_KV: Tensor  # log pi_old
    logp_ref_KV: Tensor  # log pi_ref

    def find(self, tokens_n: Tensor) -> tuple[Tensor, Tensor]:
        """Where kept tokens stand among the M, and among those whose distributions this process holds."""
        return torch.searchsorted(self.tokens_M, tokens_n), torch.searchsorted(self.tokens_K, tokens_n)


@dataclass(kw_only=True)
class CompletionRollout(Rollout):
    """Completions as a rollout of T steps in B environments, with what collecting them showed of each token."""

    completions: Completions
    minibatches: list[list[Tensor]]  # rows (b,) of the pieces of each minibatch
    logp_old_N: Tensor  # nats
    logp_ref_N: Tensor  # nats
    value_N: Tensor
    correction_N: Tensor  # truncated weight of a token that another program than the learner drew, else 1
    kept: Kept

    def groups(self) -> Array:
        """Rows (M, b) of at least 2 and at most 32 disjoint groups of whole prompts, for the variance of the gradient."""
        num_prompts = self.reward.shape[1] // self.group_size
        per_group = -(-num_prompts // 32)
        size = per_group * self.group_size
        return np.arange(num_prompts // per_group * size).reshape(-1, size)


class TokenBatch(NamedTuple):
    """N tokens to learn from, float32; a NamedTuple as control's batch is."""

    completions: Completions
    minibatches: list[list[Piece]]
    weight: Tensor  # (N,) of each token in its minibatch's mean; they sum to 1 in each minibatch
    advantage: Tensor  # (N,)
    value_target: Tensor  # (N,)
    value_old: Tensor  # (N,)
    logp_old: Tensor  # (N,)
    logp_ref: Tensor  # (N,)
    correction: Tensor  # (N,)
    kept: Kept


def token_weights(completions: Completions, minibatches: list[list[Tensor]], reduction: str) -> Tensor:
    """(N,): the weight of each token in the reduction (a key of REDUCTIONS) over its minibatch."""
    mask_BT = completions.completion_mask_BT.to(torch.float32)
    weight_BT = torch.zeros_like(mask_BT)
    for pieces in minibatches:
        rows = torch.cat(pieces)
        weight_BT[rows] = REDUCTIONS[reduction](mask_BT[rows])
    return weight_BT[mask_BT.bool()]


def flat(x_TB: Array, completions: Completions) -> Tensor:
    """(N,) float32 of an array over steps and environments."""
    mask_BT = completions.completion_mask_BT.bool()
    return torch.from_numpy(np.ascontiguousarray(x_TB.T)).to(mask_BT.device, torch.float32)[mask_BT]


def sampler_gap(logp_old_N: Tensor, completions: Completions) -> Tensor:
    """(N,) log pi_old - log pi_sampler of the tokens, nats: rounding where the policy drew them itself."""
    return logp_old_N - completions.logp_BT[completions.completion_mask_BT.bool()]


def rows_of(x_N: Tensor, completions: Completions) -> Tensor:
    """(B, T): each token's number where it stands, 0 under padding."""
    mask_BT = completions.completion_mask_BT.bool()
    return torch.zeros(mask_BT.shape, dtype=x_N.dtype, device=x_N.device).masked_scatter(mask_BT, x_N)


def clustered_mean(x_N: Tensor, completions: Completions) -> tuple[float, float]:
    """Mean over tokens, and its standard error with whole completions as the independent samples (a ratio of means)."""
    total_B = rows_of(x_N.double(), completions).sum(-1)
    length_B = completions.completion_mask_BT.sum(-1).double()
    mean = total_B.sum() / length_B.sum()
    count = len(total_B)
    spread = (total_B - mean * length_B).square().sum() * count / max(count - 1, 1)
    return mean.item(), (spread.sqrt() / length_B.sum()).item()


def _whole(kept: Kept) -> Kept:
    """The kept tokens with the distributions that any process holds."""
    columns = zip(*distributed.gather(tuple(x.cpu() for x in kept[1:])), strict=True)
    tokens, old, ref = (torch.cat(column).to(kept.tokens_M.device) for column in columns)
    order = tokens.argsort()
    return Kept(kept.tokens_M, tokens[order], old[order], ref[order])


def pack(rollout: CompletionRollout) -> dict[str, Any]:
    """The rollout as tensors, lists and numbers, as a checkpoint holds them."""
    arrays = {name: getattr(rollout, name) for name in ("reward", "value", "next_value", "terminated", "done", "mask")}
    return {
        "steps": {name: torch.from_numpy(x) for name, x in arrays.items()},
        "group_size": rollout.group_size,
        "metrics": rollout.metrics,
        "completions": list(rollout.completions),
        "minibatches": rollout.minibatches,
        "tokens": [rollout.logp_old_N, rollout.logp_ref_N, rollout.value_N, rollout.correction_N],
        "kept": list(_whole(rollout.kept)),
    }


def unpack(state: dict[str, Any]) -> CompletionRollout:
    """The rollout of ``pack``."""
    logp_old, logp_ref, value, correction = state["tokens"]
    nothing = np.empty(0)
    return CompletionRollout(
        observation=nothing,
        action=nothing,
        **{name: x.numpy() for name, x in state["steps"].items()},
        group_size=state["group_size"],
        metrics=state["metrics"],
        completions=Completions(*state["completions"]),
        minibatches=state["minibatches"],
        logp_old_N=logp_old,
        logp_ref_N=logp_ref,
        value_N=value,
        correction_N=correction,
        kept=Kept(*state["kept"]),
    )
