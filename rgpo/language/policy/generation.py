"""Sampling completions from a causal language model: batched, left-padded, every random number from the given generator.

Names: B sequences, P longest prompt, T longest completion, S = P + T, V vocabulary; U different prompts, b rows still running.
The loop calls the model's own forward and saves what `model.generate` spends around it: a prompt that occurs many times is
read once, a row that has ended leaves the batch, masks are made once. A row's random numbers depend on its place and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from rgpo.errors import NonFiniteError, require
from rgpo.language.policy import attention_masks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Choose = Callable[[Tensor, Tensor, int], Tensor]  # logits (b, V), their places in B (b,), step -> tokens (b,)


class Completions(NamedTuple):
    """Prompts and completions; padding stands left of prompts and right of completions, and is known by mask 0 alone."""

    sequence_BS: Tensor  # int64
    attention_mask_BS: Tensor  # int64, 1 on prompt and completion
    completion_mask_BT: Tensor  # int64, 1 on the completion with its end-of-sequence token
    finished_B: Tensor  # bool, False where max_new_tokens cut the completion off
    prompt_lengths_B: Tensor  # int64
    logp_BT: Tensor  # float32, of each token under the distribution it was drawn from, nats; 0 under mask 0


def generate(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_id: int,
    pad_id: int,
    generator: torch.Generator,
    top_p: float = 1.0,
    own: slice = slice(None),
) -> Completions:
    """One completion a prompt from softmax(logits / temperature); temperature 0 takes the most probable token.

    top_p < 1 draws from the fewest tokens that hold that much probability: no longer the distribution whose log-probabilities
    training computes, and logp_BT is before that cut. Takes B x max_new_tokens numbers from the generator, none at temperature
    0, and completes the rows `own` alone. pad_id and eos_id may be equal and may occur in prompts. Dropout is off meanwhile.
    ConfigError for impossible settings, NonFiniteError for NaN logits.
    """
    require(len(prompt_ids) > 0 and all(map(len, prompt_ids)), "prompt_ids", prompt_ids, "each prompt needs at least one token.")
    require(max_new_tokens >= 1, "max_new_tokens", max_new_tokens, "must be at least 1.")
    require(temperature >= 0, "temperature", temperature, "must be positive, or 0 for the most probable token.")
    require(0 < top_p <= 1, "top_p", top_p, "must lie in (0, 1]; 1 keeps every token.")
    draws = max_new_tokens if temperature > 0 else 0
    uniform = torch.rand((len(prompt_ids), draws), generator=generator, dtype=torch.float64, device=generator.device)[own]
    prompt_ids = prompt_ids[own]
    width = max(map(len, prompt_ids))
    sequence = torch.full((len(prompt_ids), width + max_new_tokens), pad_id)
    mask = torch.zeros_like(sequence)
    for row, prompt in enumerate(prompt_ids):
        sequence[row, width - len(prompt) : width] = torch.tensor(prompt)
        mask[row, width - len(prompt) : width] = 1
    sequence, mask, uniform = (x.to(model.device) for x in (sequence, mask, uniform))
    logp = torch.zeros((len(prompt_ids), max_new_tokens), device=model.device)

    def choose(logits_bV: Tensor, rows: Tensor, step: int) -> Tensor:
        if draws == 0:
            return logits_bV.argmax(-1)
        token = sample(logits_bV, uniform[rows, step], temperature=temperature, top_p=top_p)
        logp[rows, step] = torch.log_softmax(logits_bV.float() / temperature, -1).gather(-1, token[:, None])[:, 0]
        return token

    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        finished = _decode(model, sequence, mask, width, eos_id, choose)
    finally:
        for module in training:
            module.training = True
    stop = width + int(mask[:, width:].sum(-1).max())
    sequence, mask = sequence[:, :stop].contiguous(), mask[:, :stop].contiguous()
    live = mask[:, width:].contiguous()
    return Completions(sequence, mask, live, finished, mask[:, :width].sum(-1), logp[:, : stop - width].contiguous())


def assemble(
    prompt_ids: Sequence[Sequence[int]], rows: Sequence[tuple[Sequence[int], Sequence[float], bool]], pad_id: int, device: Any
) -> Completions:
    """Completions drawn elsewhere: of each prompt its tokens, their log-probabilities, and whether it ended by itself."""
    width, longest = max(map(len, prompt_ids)), max(len(ids) for ids, _, _ in rows)
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


def join(parts: Sequence[Completions], pad_id: int) -> Completions:
    """The rows of all parts, padded to the longest prompt and the longest completion among them."""
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


def sample(logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float = 1.0) -> Tensor:
    """Tokens (B,) int64 at which F first exceeds u F(V), F the running sum of p = softmax(logits / temperature), u in [0, 1).

    Under top_p the sum runs from the most probable token down and ends with the first that brings it to top_p. p is float32,
    F and u are float64. NonFiniteError for logits with NaN or +inf.
    """
    p = torch.softmax(logits_BV.float() / temperature, -1)
    ranked, token_of_rank = p.sort(stable=True, dim=-1, descending=True) if top_p < 1 else (p, None)
    mass = ranked.cumsum(-1, dtype=torch.float64)
    total = mass[:, -1:] if token_of_rank is None else mass.where(mass - ranked < top_p, 0).amax(-1, keepdim=True)
    if not bool(total.isfinite().all()):
        raise NonFiniteError("logits: NaN or +inf while sampling; lower update.lr or look at the last checkpoint.")
    below_one = 1 - 2**-52  # keeps u F(V) below F(V) after rounding, so that no token of probability 0 is drawn
    choice = torch.searchsorted(mass, uniform_B.unsqueeze(-1) * below_one * total, right=True)
    return (choice if token_of_rank is None else token_of_rank.gather(-1, choice)).squeeze(-1)


def _decode(model: PreTrainedModel, sequence: Tensor, mask: Tensor, width: int, eos_id: int, choose: Choose) -> Tensor:
    """Fill in completions and their mask (B, P + max_new_tokens) in place, which keeps them usable in training; finished (B,)."""
    finished = torch.zeros(len(sequence), dtype=torch.bool, device=sequence.device)
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        additive = attention_masks.takes_masks(model.config)

        def forward(ids: Tensor, attention: Tensor, position: Tensor) -> Tensor:
            given = {"attention_mask": attention, "position_ids": position, "past_key_values": cache}
            logits: Tensor = model(input_ids=ids, **given, use_cache=True, logits_to_keep=1).logits
            return logits[:, -1]

        both = torch.stack([sequence[:, :width], mask[:, :width]], 1)
        different, place = torch.unique(both, dim=0, return_inverse=True)
        prompts, seen = different.unbind(1)
        read = attention_masks.additive(attention_masks.earlier(seen - 1)[:, None], model.dtype) if additive else seen
        logits = forward(prompts, read, (seen.cumsum(-1) - 1).clamp(min=0))[place]
        cache.reorder_cache(place)
        rows = torch.arange(len(sequence), device=sequence.device)
        lengths = mask.sum(-1, keepdim=True)
        visible = torch.cat([mask[:, :width], torch.ones_like(mask[:, width:])], -1)
        if additive:
            visible = attention_masks.additive(visible.bool(), model.dtype)[:, None, None]
        for step in range(sequence.shape[1] - width):
            token = choose(logits, rows, step)
            sequence[rows, width + step] = token
            mask[rows, width + step] = 1
            running = token != eos_id
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
