"""Adam on one flat parameter vector, as a pure function, and gradient clipping by norm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999


class AdamState(NamedTuple):
    """Parameters and moments, each (P,)."""

    parameters: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def start(cls, parameters: Tensor) -> AdamState:
        """Zero moments; the parameters are copied."""
        zeros = torch.zeros_like(parameters)
        return cls(parameters.detach().clone(), zeros, zeros.clone())


Epochs = tuple[AdamState, Tensor, list[Tensor]]  # final state, statistics of every step, and measures after every epoch


def bias_corrections(lr: float, num_steps: int, count: int) -> Tensor:
    """lr/(1 - beta1^t) and 1/sqrt(1 - beta2^t) for the `count` steps t after the first num_steps, (count, 2) float64."""
    t = np.arange(num_steps + 1, num_steps + count + 1)
    return torch.from_numpy(np.stack([lr / (1 - BETA1**t), (1 - BETA2**t) ** -0.5], -1))


def adam(state: AdamState, gradient: Tensor, corrections: Tensor, eps: float) -> AdamState:
    """theta -= lr m^/(sqrt v^ + eps) with bias-corrected moments m^, v^ (Kingma & Ba 2015, Algorithm 1).

    corrections (2,) is the step's row of ``bias_corrections``, precomputed because powers of beta for every parameter would
    cost more than the rest of the step.
    """
    rate, root = corrections.unbind()
    first = state.first + (1 - BETA1) * (gradient - state.first)
    second = BETA2 * state.second + (1 - BETA2) * gradient.square()
    return AdamState(state.parameters - rate * first / (second.sqrt() * root + eps), first, second)


def clip_by_norm(gradient: Tensor, max_norm: float | None, num_apart: int | None = None) -> tuple[Tensor, Tensor]:
    """gradient min(1, max_norm/||gradient||), and the norm before clipping; max_norm None does not clip.

    num_apart: the leading num_apart numbers (the actor's) and the rest are clipped separately; the norm is the actor's, or NaN
    if the other norm is not finite.
    """
    if num_apart is not None:
        (actor, norm), (critic, other) = (clip_by_norm(x, max_norm) for x in (gradient[:num_apart], gradient[num_apart:]))
        return torch.cat([actor, critic]), norm + 0 * other
    norm = gradient.square().sum().sqrt()
    if max_norm is None:
        return gradient, norm
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm
