"""Micro-batches: the completions that share a forward pass, and their arrangement in rows.

If the model supports packing (rgpo.language.policy.packed_attention), all tokens of a micro-batch share one row, in which each
prompt is followed by its completions, so that it is processed only once, without padding. Otherwise, a row is one prompt with
one completion. A completion's last token is not fed to the model, since nothing is learned from its prediction.
Names: a rollout has B completions with N tokens in total, row by row. A micro-batch has b of them with at most t tokens each and
n in total, in U rows of W tokens (U = 1 if packed); distributions over the vocabulary V are stored for M of the N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from rgpo import distributed
from rgpo.core.rollout import Array
from rgpo.language.policy import packed_attention
from rgpo.language.policy.generation import Completions
from rgpo.language.policy.packed_attention import PackedRows
from rgpo.language.policy.rounding import accepted

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layout = Literal[
    "packed", "padded", "plain"
]  # layouts of a forward pass, fastest first; plain: padded, but without mask and positions
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


class StoredDistributions(NamedTuple):
    """Tokens whose full distributions were stored when the rollout was collected."""

    tokens_M: Tensor  # int64, ascending, indices among the N
    tokens_K: Tensor  # those whose distributions this process has; all M with a single process
    logp_old_KV: Tensor  # log pi_old, nats
    logp_ref_KV: Tensor  # log pi_ref, nats

    def locate(self, tokens_n: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of stored tokens among the M and among the K."""
        return torch.searchsorted(self.tokens_M, tokens_n), torch.searchsorted(self.tokens_K, tokens_n)


class MicroBatch(NamedTuple):
    """One forward pass: its inputs, and which of the N tokens it predicts."""

    input_ids_UW: Tensor
    position_ids_UW: Tensor
    known_UW: Tensor  # bool, False on padding
    live_bt: Tensor  # bool, True on the completions' tokens
    targets_n: Tensor
    tokens_n: Tensor  # int64, their indices among the N
    sources_n: Tensor  # int64, flat indices in (U, W) of the positions that predict them
    packed_rows: PackedRows | None = None  # the attention of a packed row
    stored: StoredDistributions | None = None

    @property
    def num_samples(self) -> int:
        return len(self.tokens_n)

    def predicting(self, hidden_UWD: Tensor) -> Tensor:
        """The hidden states (n, D) from which the completions' tokens are predicted."""
        return hidden_UWD.flatten(0, 1)[self.sources_n]


def layout_inputs(layout: Layout, view: MicroBatch, backbone: PreTrainedModel) -> dict[str, object]:
    """Model inputs besides token ids: mask and positions; neither for plain rows, where padding comes after all tokens."""
    if view.packed_rows is not None:
        unread = torch.zeros(1, 1, 1, 1, dtype=backbone.dtype, device=view.input_ids_UW.device)  # transformers makes no mask
        inputs = accepted(backbone, attention_mask=unread, position_ids=view.position_ids_UW, use_cache=False)
        return inputs | {"packed_rows": view.packed_rows.with_masks(backbone.dtype)}  # forwarded to each layer's attention
    masked = {"attention_mask": view.known_UW.long(), "position_ids": view.position_ids_UW} if layout == "padded" else {}
    return accepted(backbone, **masked, use_cache=False)


def assign_rows(completions: Completions, packed: bool) -> Tensor:
    """A group id (B,) int64 per completion: equal for completions of equal prompts if packed, else unique."""
    count = len(completions.sequence_BS)
    if not packed:
        return torch.arange(count, device=completions.sequence_BS.device)
    width = completions.sequence_BS.shape[1] - completions.completion_mask_BT.shape[1]
    prompts = torch.stack([completions.sequence_BS[:, :width], completions.attention_mask_BS[:, :width]], 1)
    rows: Tensor = torch.unique(prompts, dim=0, return_inverse=True)[1]
    return rows


def group_by_prompt(index: Array, completions: Completions, rows_B: Tensor, size: int) -> list[Tensor]:
    """Split completions into micro-batches of at most ``size``, keeping equal prompts together and lengths similar.

    There is at least one micro-batch per process if there are enough completions.
    """
    row = rows_B.cpu().numpy()[index]
    length = completions.completion_mask_BT.sum(-1).cpu().numpy()[index]
    whole = completions.prompt_lengths_B.cpu().numpy()[index] + np.bincount(row, length)[row]
    ordered = index[np.lexsort((length, row, whole))]
    size = min(size, -(-len(index) // distributed.world_size()))
    return [torch.from_numpy(ordered[start : start + size]) for start in range(0, len(index), size)]


def make_micro_batch(completions: Completions, index: Tensor, rows_B: Tensor, packed: bool) -> MicroBatch:
    """The forward pass for completions with indices (b,): in one row if packed, otherwise one row each."""
    live, prompt_length = completions.completion_mask_BT[index].bool(), completions.prompt_lengths_B[index, None]
    length = live.sum(-1, keepdim=True)
    width, longest = completions.sequence_BS.shape[1] - live.shape[1], int(length.max())
    sequence, live = completions.sequence_BS[index, : width + longest], live[:, :longest]
    known, targets = completions.attention_mask_BS[index, :width].bool(), sequence[:, width:]
    column, step = (torch.arange(count, device=index.device) for count in (width, longest))

    num_read = (length - 1).clamp(min=0)  # an empty completion takes no space
    row = torch.unique(rows_B[index], return_inverse=True)[1][:, None]
    earlier = (row == row.T).tril(-1)  # earlier completions of the same prompt
    end = prompt_length + (earlier * num_read.T).sum(-1, keepdim=True) + num_read
    ends_U = torch.zeros(int(row.max()) + 1, dtype=end.dtype, device=index.device)
    ends_U.scatter_reduce_(0, row[:, 0], end[:, 0], "amax")
    shape = (1, int(ends_U.sum())) if packed else (len(ends_U), int(ends_U.max()))
    begin = (ends_U.cumsum(0) - ends_U)[row] if packed else row * shape[1]  # start of the prompt, flat in (U, W)
    start = begin + end - num_read  # start of the completion
    place_bP, place_bt = begin + column - width + prompt_length, start + step
    read = step < num_read

    def lay_out(of_prompt_bP: Tensor, of_completion_bt: Tensor) -> Tensor:
        laid = of_prompt_bP.new_zeros(shape).flatten()
        for place, where, x in ((place_bP, known, of_prompt_bP), (place_bt, read, of_completion_bt)):
            laid[place[where]] = x.expand_as(where)[where]
        return laid.view(shape)

    lengths_B = completions.completion_mask_BT.sum(-1)
    tokens = (lengths_B.cumsum(0) - lengths_B)[index, None] + step
    source = torch.where(step == 0, begin + prompt_length, place_bt) - 1
    plan = (x[:, 0] for x in (begin, prompt_length, start, num_read))
    return MicroBatch(
        lay_out(sequence[:, :width], targets),
        lay_out(column - width + prompt_length, prompt_length + step),
        lay_out(known, read),
        live,
        targets[live],
        tokens[live],
        source[live],
        packed_attention.plan_attention(*plan) if packed else None,
    )


def local_micro_batches(micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """This process's share, padded with empty micro-batches so that every rank makes the same collective calls."""
    rank, size = distributed.rank(), distributed.world_size()
    mine = list(micro_batches[rank::size])
    return mine + [_empty(micro_batches[0])] * (-(-len(micro_batches) // size) - len(mine))


def _empty(micro_batch: MicroBatch) -> MicroBatch:
    """A micro-batch with one row to run the model on, but no tokens to learn from."""
    ids, position, known, live = (x[:1] for x in micro_batch[:4])
    targets, tokens, sources = (x[:0] for x in micro_batch[4:7])
    return MicroBatch(ids, position, known, torch.zeros_like(live), targets, tokens, sources, *micro_batch[7:])
