"""Attention in a packed row: all tokens of a micro-batch in sequence, each prompt once, without padding.

A token attends to its prompt and its own completion. The model's attention gathers the relevant rows by index and calls
transformers' SDPA on them, so that the cost per completion equals that of a separate row, for any group size.
Legend: N tokens of a packed row; b completions of at most t tokens, U prompts of at most P; R rows of Q queries and K keys;
H heads of size d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from rgpo.language.policy.attention_masks import PACKED, additive_mask, supports_packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AttentionCall(NamedTuple):
    """An SDPA call on rows of query and key tokens; shorter rows are filled with arbitrary tokens, whose results are not used."""

    queries_RQ: Tensor  # int64, indices among the N
    keys_RK: Tensor
    mask_R1QK: Tensor | None  # bool (True: visible) or additive; None: causal, with as many keys as queries

    @property
    def num_scores(self) -> int:
        """Number of computed query-key pairs per head and layer; half of all pairs if causal."""
        return self.queries_RQ.numel() * self.keys_RK.shape[1] // (2 if self.mask_R1QK is None else 1)


class PackedRows(NamedTuple):
    """The attention of a packed row: SDPA calls, and each of the N tokens' index in their concatenated results."""

    calls: tuple[AttentionCall, ...]
    places_N: Tensor  # int64

    @property
    def num_scores(self) -> int:
        """Number of computed query-key pairs per head and layer."""
        return sum(call.num_scores for call in self.calls)

    def with_masks(self, dtype: torch.dtype) -> PackedRows:
        """The same calls with additive masks, which all layers share."""
        masks = (None if call.mask_R1QK is None else additive_mask(call.mask_R1QK, dtype) for call in self.calls)
        return self._replace(calls=tuple(call._replace(mask_R1QK=m) for call, m in zip(self.calls, masks, strict=True)))


def plan_attention(prompt_start_b: Tensor, prompt_length_b: Tensor, start_b: Tensor, length_b: Tensor) -> PackedRows:
    """Choose the attention with fewer scores: repeat the prompt for each completion, or process prompts once and separately.

    Arguments (b,): index among the N of the first token of each completion's prompt, the prompt's length, and the same for the
    completion. Repeating takes b (P + t)^2 / 2 scores, half of (P + t)^2 since causal attention needs no mask; separating takes
    U P^2 / 2 + b t (P + t). At P = t both take 4/3 of the necessary scores, elsewhere the cheaper one takes less.
    """
    first = torch.ones_like(prompt_start_b, dtype=torch.bool)  # first completion of its prompt
    first[1:] = ~(prompt_start_b[1:, None] == prompt_start_b).tril().any(-1)
    start, size, own, length = (x[:, None] for x in (prompt_start_b, prompt_length_b, start_b, length_b))
    widest, longest, whole = (int(x.max()) for x in (size, length, size + length))
    again = len(first) * whole**2 // 2
    apart = int(first.sum()) * widest**2 // 2 + len(first) * longest * (widest + longest)
    if longest == 0 or again <= apart:
        column = torch.arange(whole, device=start.device)
        rows = torch.where(column < size + length, torch.where(column < size, start, own - size) + column, start)
        read = (column < size + length) & ((column >= size) | first[:, None])
        return PackedRows((AttentionCall(rows, rows, None),), _places((rows, read)))
    column, step = (torch.arange(count, device=start.device) for count in (widest, longest))
    prompts, drawn = torch.where(column < size, start + column, start), torch.where(step < length, own + step, start)
    visible = torch.cat(
        [(column < size)[:, None].expand(-1, longest, -1), (step <= step[:, None]).expand(len(first), -1, -1)], -1
    )
    calls = (
        AttentionCall(prompts[first], prompts[first], None),
        AttentionCall(drawn, torch.cat([prompts, drawn], -1), visible[:, None]),
    )
    return PackedRows(calls, _places((prompts[first], (column < size)[first]), (drawn, step < length)))


def _places(*rows: tuple[Tensor, Tensor]) -> Tensor:
    """Each token's index (N,) among all positions of the rows; `read` marks the positions whose results are used."""
    index, read = (torch.cat([x.flatten() for x in column]) for column in zip(*rows, strict=True))
    found = read.nonzero().squeeze(-1)
    return torch.empty_like(found).index_copy(0, index[found], found)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_rows: PackedRows | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """transformers' SDPA (1, H, N, d) -> (1, N, H, d), applied per call of packed_rows if given."""
    sdpa = AttentionInterface()["sdpa"]
    if packed_rows is None:
        out: tuple[Tensor, None] = sdpa(module, query, key, value, attention_mask, **options)
        return out
    q, k, v = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))
    results = []
    for queries, keys, mask in packed_rows.calls:
        parts = (_gather(x_ND, index, x.shape[1]) for x_ND, index, x in ((q, queries, query), (k, keys, key), (v, keys, value)))
        results.append(sdpa(module, *parts, mask, **options)[0].flatten(0, 1))
    return _pick(torch.cat(results).flatten(1), packed_rows.places_N).view(1, len(q), query.shape[1], -1), None


def _gather(x_ND: Tensor, index_RQ: Tensor, num_heads: int) -> Tensor:
    """Gather tokens (R, Q) and split the heads: (R, H, Q, d)."""
    return _pick(x_ND, index_RQ).view(*index_RQ.shape, num_heads, -1).transpose(1, 2)


def _pick(x_ND: Tensor, index: Tensor) -> Tensor:
    """Select rows of x by an embedding lookup, whose gradient is summed in a fixed order on every device."""
    return F.embedding(index, x_ND)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, AttentionMaskInterface()["sdpa"])


@torch.inference_mode()
def enable_packing(model: PreTrainedModel) -> bool:
    """Replace a model's SDPA by ``attend`` if it supports packing; returns True if its logits for a text are unchanged."""
    if not supports_packing(model.config):
        return False
    ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    before = model(input_ids=ids).logits
    model.set_attn_implementation(PACKED)
    if supports_packing(model.config) and torch.equal(model(input_ids=ids).logits, before):
        return True
    model.set_attn_implementation("sdpa")
    return False
