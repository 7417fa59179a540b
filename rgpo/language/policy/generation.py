"""Batched sampling of completions from a causal language model, with all random numbers from the given generator.

Legend: B sequences, P longest prompt, T longest completion, S = P + T, V vocabulary, b rows still running. The loop calls the
model's forward pass directly and avoids the overhead of ``model.generate``: a repeated prompt is processed once, finished rows
leave the batch, and masks are made once. A row's random numbers depend only on its index and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rgpo.core.sequence import UNCORRECTED, Correction
from rgpo.errors import NonFiniteError, require
from rgpo.language.policy import attention_masks
from rgpo.language.policy.growing_cache import growing_cache
from rgpo.language.policy.rounding import accepted
from rgpo.language.policy.stopping import StopRule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batching = Literal["additive", "padded", "equal_length", "uncached"]  # batching of prompts, fastest first
BATCHINGS: tuple[Batching, ...] = get_args(Batching)
Choose = Callable[[Tensor, Tensor, int], Tensor]  # logits (b, V), row indices (b,), step -> tokens (b,)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for sampling completions and computing their tokens' log-probabilities."""

    temperature: float
    max_new_tokens: int
    stop: StopRule
    pad_id: int
    ratio: str  # one of RATIOS: the log ratio passed to the gate
    reduction: str  # a key of REDUCTIONS
    micro_batch_size: int  # completions per forward pass during learning
    num_kl_tokens: int  # number of tokens whose full distributions are stored
    mask_truncated: bool = False  # exclude completions cut by the length limit from the loss
    ratio_clip: Sequence[float] | None = None  # nats, for ratio=sequence_clipped
    correction: Correction = UNCORRECTED
    correction_cap: float | None = None  # the sampler's own cap, used if correction is none


class Completions(NamedTuple):
    """Prompts padded on the left and completions padded on the right; only the masks identify padding."""

    sequence_BS: Tensor  # int64
    attention_mask_BS: Tensor  # int64, 1 on prompt and completion
    completion_mask_BT: Tensor  # int64, 1 on the completion including its end-of-sequence token
    finished_B: Tensor  # bool, False where max_new_tokens cut the completion
    prompt_lengths_B: Tensor  # int64
    logp_BT: Tensor  # float32, nats, under the sampling distribution; NaN if unknown, 0 on padding


def generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    stop: StopRule,
    pad_id: int,
    generator: torch.Generator,
    rows: slice = slice(None),
    batching: Batching | None = None,
) -> Completions:
    """Sample one completion per prompt from softmax(logits / temperature); temperature 0 takes the most probable token.

    Draws B x max_new_tokens numbers from the generator (none at temperature 0), but completes only the prompts in ``rows``.
    pad_id may be a token that ends a completion, and both may occur in prompts. Dropout is off. batching: None means
    ``default_batching``; additive and padded pad prompts on the left and differ in the mask; for the others see
    ``_decode_by_length``.
    Raises: ConfigError if a setting is out of range; NonFiniteError if a logit is NaN or +inf.
    """
    require(len(prompt_ids) > 0 and all(map(len, prompt_ids)), "prompt_ids", prompt_ids, "each prompt needs at least one token.")
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1.")
    require(temperature >= 0, "temperature", temperature, "must be positive, or 0 for the most probable token.")
    draws = max_new_tokens if temperature > 0 else 0
    uniform = torch.rand((len(prompt_ids), draws), generator=generator, dtype=torch.float64, device=generator.device)[rows]
    prompt_ids = prompt_ids[rows]
    width = max(map(len, prompt_ids))
    sequence = torch.full((len(prompt_ids), width + max_new_tokens), pad_id)
    mask = torch.zeros_like(sequence)
    for row, prompt in enumerate(prompt_ids):
        sequence[row, width - len(prompt) : width] = torch.tensor(prompt)
        mask[row, width - len(prompt) : width] = 1
    sequence, mask, uniform = (x.to(model.device) for x in (sequence, mask, uniform))
    logp = torch.zeros((len(prompt_ids), max_new_tokens), device=model.device)

    def choose(logits_bV: Tensor, running: Tensor, step: int) -> Tensor:
        if draws == 0:
            return logits_bV.argmax(-1)
        token = sample_tokens(logits_bV, uniform[running, step], temperature=temperature)
        logp[running, step] = torch.log_softmax(logits_bV.float() / temperature, -1).gather(-1, token[:, None])[:, 0]
        return token

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        batching = batching or default_batching(model)
        if batching in ("additive", "padded"):
            finished = _decode(model, sequence, mask, width, stop, choose, additive=batching == "additive")
        else:
            finished = _decode_by_length(model, sequence, mask, width, stop, choose, cached=batching == "equal_length")
    finally:
        for module in training:
            module.training = True
    end = width + int(mask[:, width:].sum(-1).max())
    sequence, mask = sequence[:, :end].contiguous(), mask[:, :end].contiguous()
    live = mask[:, width:].contiguous()
    return Completions(sequence, mask, live, finished, mask[:, :width].sum(-1), logp[:, : end - width].contiguous())


def make_completions(
    prompt_ids: Sequence[Sequence[int]],
    rows: Sequence[tuple[Sequence[int], Sequence[float], bool]],
    pad_id: int,
    device: torch.device,
) -> Completions:
    """Build completions from another source; rows: completion tokens, their log-probabilities, and whether eos ended them.

    Raises: ConfigError if all completions are empty.
    """
    width, longest = max(map(len, prompt_ids)), max(len(ids) for ids, _, _ in rows)
    require(longest > 0, "task.sampler", f"{len(rows)} completions", "no completion has a token, not even the end of its turn.")
    sequence = torch.full((len(rows), width + longest), pad_id)
    mask, logp = torch.zeros_like(sequence), torch.zeros((len(rows), longest))
    for i, (prompt, (ids, values, _)) in enumerate(zip(prompt_ids, rows, strict=True)):
        span = slice(width - len(prompt), width + len(ids))
        sequence[i, span] = torch.tensor([*prompt, *ids])
        mask[i, span] = 1
        logp[i, : len(ids)] = torch.tensor(values)
    finished = torch.tensor([ended for _, _, ended in rows])
    parts = (sequence, mask, mask[:, width:].contiguous(), finished, mask[:, :width].sum(-1), logp)
    return Completions(*(x.to(device) for x in parts))


def concatenate(parts: Sequence[Completions], pad_id: int) -> Completions:
    """Concatenate the rows of all parts, padded to the longest prompt and the longest completion."""
    widths = [part.sequence_BS.shape[1] - part.completion_mask_BT.shape[1] for part in parts]
    lengths = [part.completion_mask_BT.shape[1] for part in parts]

    def padded(name: str, value: int, left: bool) -> Tensor:
        columns = zip((getattr(part, name) for part in parts), widths, lengths, strict=True)
        return torch.cat([F.pad(x, ((max(widths) - w) * left, max(lengths) - t), value=value) for x, w, t in columns])

    return Completions(
        padded("sequence_BS", pad_id, left=True),
        padded("attention_mask_BS", 0, left=True),
        padded("completion_mask_BT", 0, left=False),
        torch.cat([part.finished_B for part in parts]),
        torch.cat([part.prompt_lengths_B for part in parts]),
        padded("logp_BT", 0, left=False),
    )


def completion_ids(completions: Completions) -> list[list[int]]:
    """Tokens of each completion, with eos and without padding."""
    live = completions.completion_mask_BT.bool()
    width = completions.sequence_BS.shape[1] - live.shape[1]
    return [row[mask].tolist() for row, mask in zip(completions.sequence_BS[:, width:], live, strict=True)]


def sample_tokens(logits_BV: Tensor, uniform_B: Tensor, *, temperature: float) -> Tensor:
    """Sample tokens (B,) int64: the first with F > u F(V), F the running sum of softmax(logits / temperature), u in [0, 1).

    Probabilities are float32, F and u are float64.
    Raises: NonFiniteError if a logit is NaN or +inf.
    """
    mass = torch.softmax(logits_BV.float() / temperature, -1).cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:]
    if not bool(total.isfinite().all()):
        raise NonFiniteError("logits: NaN or +inf while sampling; lower update.lr or look at the last checkpoint.")
    below_one = 1 - 2**-52  # keeps u F(V) below F(V) after rounding, so that no token of probability 0 is drawn
    return torch.searchsorted(mass, uniform_B.unsqueeze(-1) * below_one * total, right=True).squeeze(-1)


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def default_batching(model: PreTrainedModel) -> Batching:
    """The fastest batching that a model's config allows."""
    return "additive" if attention_masks.accepts_custom_masks(model.config) else "padded"


def _decode(
    model: PreTrainedModel, sequence: Tensor, mask: Tensor, width: int, stop: StopRule, choose: Choose, additive: bool
) -> Tensor:
    """Write completions and mask (B, P + max_new_tokens) in place, so that autograd can use them; returns finished (B,)."""
    finished = torch.zeros(len(sequence), dtype=torch.bool, device=sequence.device)
    base = base_model(model)
    with torch.inference_mode():
        cache = growing_cache(model.config)

        def forward(ids: Tensor, attention: Tensor, position: Tensor) -> Tensor:
            given = {
                "attention_mask": attention,
                "position_ids": position,
                "past_key_values": cache,
                "cache": cache,
                "cache_params": cache,
            }
            logits: Tensor = model(input_ids=ids, **accepted(base, **given, use_cache=True, logits_to_keep=1)).logits
            return logits[:, -1]

        both = torch.stack([sequence[:, :width], mask[:, :width]], 1)
        distinct, index = torch.unique(both, dim=0, return_inverse=True)
        prompts, prompt_mask = distinct.unbind(1)
        attention = prompt_mask
        if additive:
            attention = attention_masks.additive_mask(attention_masks.segment_visibility(prompt_mask - 1)[:, None], model.dtype)
        logits = forward(prompts, attention, (prompt_mask.cumsum(-1) - 1).clamp(min=0))[index]
        cache.reorder_cache(index)
        rows = torch.arange(len(sequence), device=sequence.device)
        lengths = mask.sum(-1, keepdim=True)
        visible = torch.cat([mask[:, :width], torch.ones_like(mask[:, width:])], -1)
        if additive:
            visible = attention_masks.additive_mask(visible.bool(), model.dtype)[:, None, None]
        for step in range(sequence.shape[1] - width):
            token = choose(logits, rows, step)
            sequence[rows, width + step] = token
            mask[rows, width + step] = 1
            running = ~stop.ended(sequence[rows, width : width + step + 1])
            if not bool(running.all()):
                finished[rows[~running]] = True
                keep = running.nonzero().squeeze(-1)
                rows, token, lengths, visible = rows[keep], token[keep], lengths[keep], visible[keep]
                if len(rows) == 0:
                    break
                cache.reorder_cache(keep)
            if width + step + 1 < sequence.shape[1]:
                logits = forward(token[:, None], visible[..., : width + step + 1], lengths + step)
    return finished


def _decode_by_length(
    model: PreTrainedModel, sequence: Tensor, mask: Tensor, width: int, stop: StopRule, choose: Choose, cached: bool
) -> Tensor:
    """Same as ``_decode`` for models without support for left padding: one prompt length at a time, without a mask.

    cached=False processes the whole row again for each token, for models whose cache cannot be indexed by row.
    """
    finished = torch.zeros(len(sequence), dtype=torch.bool, device=sequence.device)
    lengths_B, base = mask.sum(-1), base_model(model)
    with torch.inference_mode():
        for length in sorted(set(lengths_B.tolist())):
            rows = (lengths_B == length).nonzero().squeeze(-1)
            cache = growing_cache(model.config) if cached else None
            given = {"past_key_values": cache, "cache": cache, "cache_params": cache, "use_cache": cached, "logits_to_keep": 1}
            options = accepted(base, **given)
            ids = sequence[rows, width - length : width]
            for step in range(sequence.shape[1] - width):
                token = choose(model(input_ids=ids, **options).logits[:, -1], rows, step)
                sequence[rows, width + step] = token
                mask[rows, width + step] = 1
                running = ~stop.ended(sequence[rows, width : width + step + 1])
                finished[rows[~running]] = True
                keep = running.nonzero().squeeze(-1)
                rows = rows[keep]
                if len(rows) == 0:
                    break
                if cache is None:
                    ids = sequence[rows, width - length : width + step + 1]
                else:
                    cache.reorder_cache(keep)
                    ids = token[keep, None]
    return finished
