"""Micro-batches: which completions share a forward pass, and how they stand in it.

Where the model can read lines (rgpo.language.policy.attention_masks), a line is a prompt with its completions one after the other, each of which
sees the prompt and itself: a prompt is read once, not once a completion. Else a line is a prompt with one completion. The last
token of a completion predicts nothing that is learnt and is not read.
Names: B completions of a rollout with N tokens in all, row by row. A piece holds b of them, at most t tokens long and n in all,
in U lines of at most W tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rgpo import distributed
from rgpo.core.rollout import Array
from rgpo.language.policy.generation import Completions


class Piece(NamedTuple):
    """A micro-batch: what one forward pass reads, and which of the N tokens it predicts."""

    input_ids_UW: Tensor
    position_ids_UW: Tensor
    segment_UW: Tensor  # 0 the prompt, 1, 2, ... its completions, -1 padding
    live_bt: Tensor  # bool, tokens of the completions
    targets_n: Tensor
    tokens_n: Tensor  # int64, their places among the N
    sources_n: Tensor  # int64, the places among the U W of what predicts them

    def predicting(self, hidden_UWD: Tensor) -> Tensor:
        """(n, D): the hidden states that predict the completions' tokens."""
        return hidden_UWD.flatten(0, 1)[self.sources_n]


def lines_of(completions: Completions, shared: bool) -> Tensor:
    """(B,) int64: the line that each completion stands in, its prompt's if lines are shared."""
    count = len(completions.sequence_BS)
    if not shared:
        return torch.arange(count, device=completions.sequence_BS.device)
    width = completions.sequence_BS.shape[1] - completions.completion_mask_BT.shape[1]
    prompts = torch.stack([completions.sequence_BS[:, :width], completions.attention_mask_BS[:, :width]], 1)
    lines: Tensor = torch.unique(prompts, dim=0, return_inverse=True)[1]
    return lines


def arrange(rows: Array, completions: Completions, lines_B: Tensor, size: int) -> list[Tensor]:
    """The rows in pieces of at most size: those of one line together, beside lines of about equal length.

    There is at least one piece for each process where there are enough rows.
    """
    line = lines_B.cpu().numpy()[rows]
    length = completions.completion_mask_BT.sum(-1).cpu().numpy()[rows]
    whole = completions.prompt_lengths_B.cpu().numpy()[rows] + np.bincount(line, length)[line]
    ordered = rows[np.lexsort((length, line, whole))]
    size = min(size, -(-len(rows) // distributed.world_size()))
    return [torch.from_numpy(ordered[start : start + size]) for start in range(0, len(rows), size)]


def make_piece(completions: Completions, rows: Tensor, lines_B: Tensor) -> Piece:
    """The forward pass of some rows."""
    live, prompt_length = completions.completion_mask_BT[rows].bool(), completions.prompt_lengths_B[rows, None]
    length = live.sum(-1, keepdim=True)
    width, longest = completions.sequence_BS.shape[1] - live.shape[1], int(length.max())
    sequence, live = completions.sequence_BS[rows, : width + longest], live[:, :longest]
    known, targets = completions.attention_mask_BS[rows, :width].bool(), sequence[:, width:]
    column, step = (torch.arange(count, device=rows.device) for count in (width, longest))

    line = torch.unique(lines_B[rows], return_inverse=True)[1][:, None]
    earlier = (line == line.T).tril(-1)  # completions that stand before this one in its line
    start = prompt_length + (earlier * (length.T - 1)).sum(-1, keepdim=True)
    shape = int(line.max()) + 1, int((start + length).max()) - 1
    place_bP, place_bt = (line * shape[1] + x for x in (column - width + prompt_length, start + step))
    read = step < length - 1

    def lay(of_prompt_bP: Tensor, of_completion_bt: Tensor, padding: int) -> Tensor:
        laid = torch.full(shape, padding, device=rows.device).flatten()
        for place, where, x in ((place_bP, known, of_prompt_bP), (place_bt, read, of_completion_bt)):
            laid[place[where]] = x.expand_as(where)[where]
        return laid.view(shape)

    lengths_B = completions.completion_mask_BT.sum(-1)
    tokens = (lengths_B.cumsum(0) - lengths_B)[rows, None] + step
    source = torch.where(step == 0, line * shape[1] + prompt_length, place_bt) - 1
    return Piece(
        lay(sequence[:, :width], targets, 0),
        lay(column - width + prompt_length, prompt_length + step, 0),
        lay(torch.zeros_like(column), earlier.sum(-1, keepdim=True) + 1, -1),
        live,
        targets[live],
        tokens[live],
        source[live],
    )


def own(pieces: Sequence[Piece]) -> list[Piece]:
    """This process's pieces. Each process has equally many, some of them without a token: collectives must meet."""
    rank, size = distributed.rank(), distributed.world_size()
    mine = list(pieces[rank::size])
    return mine + [_idle(pieces[0])] * (-(-len(pieces) // size) - len(mine))


def _idle(piece: Piece) -> Piece:
    """One line to run the model on, none of whose tokens is learnt from."""
    ids, position, segment, live = (x[:1] for x in piece[:4])
    targets, tokens, sources = (x[:0] for x in piece[4:])
    return Piece(ids, position, segment, torch.zeros_like(live), targets, tokens, sources)
