"""Log-probabilities and entropies over a large vocabulary without storing its (N, V) logits; pure torch.

The logits of a linear head (`nn.Linear`, tied or not, or peft's LoRA around one) are computed in blocks of tokens x vocabulary.
Two numbers per token and block determine the result for the whole vocabulary, and the backward pass recomputes the blocks. Any
other head (such as soft-capped logits) is called on a few tokens at a time, and again in the backward pass; it must not change
in between.
Legend: N tokens, D hidden size, V vocabulary, R tokens and W columns of a block. Results are float32 or wider, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]  # (R, D) -> (R, V)
BLOCK_BYTES = 2**21  # size of a block of a linear head's logits; larger blocks are not faster
BLOCK_ROWS = 512
LIVE = 10  # number of float32 arrays (R, V) alive at once with a nonlinear head
MAX_BYTES = LIVE * 2**25  # in total: glibc returns freed arrays of 32 MiB to the system; smaller ones fragment the heap


class TokenStatistics(NamedTuple):
    """Log-probability of each token's target (N,) and entropy of its distribution (N,), in nats; both have gradients."""

    logp_N: Tensor
    entropy_N: Tensor


def token_statistics(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, *, temperature: float = 1.0, max_bytes: int = MAX_BYTES
) -> TokenStatistics:
    """log p at the targets and -sum p log p of p = softmax(head(h) / temperature); gradients reach h and the head.

    targets_N int64; logits must be finite. In addition to results and gradients, a linear head needs 2 BLOCK_BYTES of memory, any
    other about max_bytes (but at least one token's logits), plus a second gradient of its weight if that is trained.
    Raises: ValueError if shapes do not match or temperature <= 0.
    """
    if hidden_ND.ndim != 2:
        raise ValueError(f"hidden_ND.shape={tuple(hidden_ND.shape)}: needs (N, D); flatten the batch first.")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: needs a positive number.")
    if targets_N.shape != hidden_ND.shape[:1]:
        raise ValueError(f"targets_N.shape={tuple(targets_N.shape)}: needs one target per token, {len(hidden_ND)} in all.")
    linear = _linear_terms(head, hidden_ND)
    if linear is not None and len(targets_N) > 0:
        return TokenStatistics(*_blocked(targets_N, temperature, linear[1], *linear[0]))
    parts = [
        checkpoint(_plain, hidden_ND[rows], head, targets_N[rows], temperature, use_reentrant=False)
        for rows in _row_slices(hidden_ND, head, max_bytes)
    ]
    return TokenStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _row_slices(hidden_ND: Tensor, head: Head, max_bytes: int) -> list[slice]:
    rows = -(-max_bytes // (4 * LIVE * head(hidden_ND[:0]).shape[-1]))
    return [slice(top, top + rows) for top in range(0, max(1, len(hidden_ND)), rows)]


def _plain(hidden_ND: Tensor, head: Head, targets_N: Tensor, temperature: float) -> TokenStatistics:
    logits = head(hidden_ND) / temperature
    logp = torch.log_softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return TokenStatistics(logp.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1), -(logp.exp() * logp).sum(-1))


def _linear_terms(head: Any, hidden: Tensor) -> tuple[list[Tensor], Tensor | None] | None:
    """[x_0, W_0, x_1, W_1, ...] and bias such that logits = sum_i x_i W_i' + bias; None if the head is not known to be linear.

    peft's plain LoRA layer (x_1 = scaling A dropout(h), W_1 = B) is recognized by name, so that peft remains optional.
    """
    if type(head) is nn.Linear:
        return [hidden, head.weight], head.bias
    known = (type(head).__module__, type(head).__qualname__) == ("peft.tuners.lora.layer", "Linear")
    if not known or type(head.base_layer) is not nn.Linear or (head.merged and head.disable_adapters):
        return None
    terms = [hidden, head.base_layer.weight]
    active = [] if head.merged or head.disable_adapters else [name for name in head.active_adapters if name in head.lora_A]
    for name in active:
        if name in head.lora_variant or head.lora_B[name].bias is not None:
            return None
        inner = head.lora_A[name](head.lora_dropout[name](hidden.to(head.lora_A[name].weight.dtype)))
        terms += [inner * head.scaling[name], head.lora_B[name].weight]
    return terms, head.base_layer.bias


class _Block(NamedTuple):
    """Block of z = logits / temperature (R, W), scratch memory (R, W), and the rows `hit` whose targets are its columns `at`."""

    rows: slice
    columns: slice
    z: Tensor
    scratch: Tensor
    hit: Tensor
    at: Tensor


def _blocks(terms: Sequence[Tensor], bias: Tensor | None, targets: Tensor, temperature: float) -> Iterator[_Block]:
    """Yield all blocks in the same memory, since separate allocations would fragment the heap by hundreds of MB."""
    inputs, weights = terms[::2], terms[1::2]
    num_rows, vocabulary = len(inputs[0]), len(weights[0])
    height = min(BLOCK_ROWS, num_rows)
    width = min(vocabulary, max(1, BLOCK_BYTES // (4 * max(1, height))))
    buffers = inputs[0].new_empty(2, height * width, dtype=_wide(inputs[0]))
    for top in range(0, num_rows, BLOCK_ROWS):
        rows = slice(top, min(top + BLOCK_ROWS, num_rows))
        for left in range(0, vocabulary, width):
            columns = slice(left, min(left + width, vocabulary))
            shape = rows.stop - top, columns.stop - left
            z, scratch = buffers[:, : shape[0] * shape[1]].view(2, *shape)
            z.zero_() if bias is None else z.copy_(bias[columns])
            for x, weight in zip(inputs, weights, strict=True):
                if x.dtype == z.dtype:
                    z.addmm_(x[rows], weight[columns].T)
                else:
                    z += x[rows] @ weight[columns].T
            target = targets[rows] - left
            hit = ((target >= 0) & (target < shape[1])).nonzero().squeeze(-1)
            yield _Block(rows, columns, z.div_(temperature), scratch, hit, target[hit])


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _Blocked(torch.autograd.Function):
    """Blockwise log-probabilities and entropies of a linear head, where s_b is the probability of block b:

    lse = log sum_b e^lse_b,  s_b = e^(lse_b - lse),  H = sum_b s_b (lse - E_b z),  d logp/dz = 1[target] - p,
    dH/dz = -p (log p + H).
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, temperature: float, bias: Tensor | None, *terms: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        chosen = targets.new_empty(len(targets), dtype=_wide(terms[0]))
        found: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for rows, _, z, mass, hit, at in _blocks(terms, bias, targets, temperature):
            chosen[rows][hit] = z[hit, at]
            peak = z.amax(-1, keepdim=True)
            torch.exp(z.sub_(peak), out=mass)
            total, peak = mass.sum(-1), peak.squeeze(-1)
            found.setdefault(rows.start, []).append((total.log() + peak, mass.mul_(z).sum(-1) / total + peak))
        stacks = [[torch.stack(x) for x in zip(*blocks, strict=True)] for blocks in found.values()]
        lse_KN, mean_KN = (torch.cat(x, -1) for x in zip(*stacks, strict=True))
        lse = lse_KN.logsumexp(0)
        entropy = ((lse_KN - lse).exp() * (lse - mean_KN)).sum(0)
        ctx.save_for_backward(targets, lse, entropy, bias, *terms)
        ctx.temperature = temperature
        return chosen - lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        targets, lse, entropy, bias, *terms = ctx.saved_tensors
        by_logp = (torch.zeros_like(lse) if grad_logp is None else grad_logp) / ctx.temperature
        needs = ctx.needs_input_grad[2:]
        grads = [torch.zeros_like(x) if need else None for x, need in zip((bias, *terms), needs, strict=True)]
        for rows, columns, z, slope, hit, at in _blocks(terms, bias, targets, ctx.temperature):
            z -= lse[rows, None]
            if grad_entropy is None:
                z.exp_().mul_(by_logp[rows, None]).neg_()
            else:
                by_entropy = grad_entropy[rows] / ctx.temperature
                slope.copy_((by_logp[rows] + entropy[rows] * by_entropy)[:, None]).addcmul_(z, by_entropy[:, None])
                z.exp_().mul_(slope).neg_()
            z[hit, at] += by_logp[rows][hit]
            if grads[0] is not None:
                grads[0][columns] += z.sum(0)
            for i in range(0, len(terms), 2):
                grad_x, grad_weight, slope_z = grads[1 + i], grads[2 + i], z.to(terms[i].dtype)
                if grad_x is not None:
                    grad_x[rows].addmm_(slope_z, terms[i + 1][columns])
                if grad_weight is not None:
                    grad_weight[columns].addmm_(slope_z.T, terms[i][rows])
        return None, None, *grads


_blocked: Callable[..., tuple[Tensor, Tensor]] = _Blocked.apply  # untyped in torch
