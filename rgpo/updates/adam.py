"""Adam on one flat parameter vector, as a pure function, and the joint gradient clip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999


class AdamState(NamedTuple):
    """Parameters and moments (P,), and the number of steps taken num_steps ()."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    num_steps: Tensor

    @classmethod
    def start(cls, parameters: Tensor) -> AdamState:
        """Zero moments; the parameters are copied."""
        zeros = torch.zeros_like(parameters)
        return cls(parameters.detach().clone(), zeros, zeros.clone(), torch.zeros((), dtype=parameters.dtype))


def adam(state: AdamState, gradient: Tensor, lr: Tensor | float, eps: float) -> AdamState:
    """theta -= lr m^/(sqrt v^ + eps) with bias-corrected moments m^, v^ (Kingma & Ba 2015, Algorithm 1)."""
    num_steps = state.num_steps + 1
    first = state.first + (1 - BETA1) * (gradient - state.first)
    second = BETA2 * state.second + (1 - BETA2) * gradient.square()
    corrected = first / (1 - BETA1**num_steps)
    scale = (second / (1 - BETA2**num_steps)).sqrt() + eps
    return AdamState(state.parameters - lr * corrected / scale, first, second, num_steps)


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> tuple[Tensor, Tensor]:
    """gradient min(1, max_norm/||gradient||) and ||gradient|| before; max_norm None leaves it whole."""
    norm = gradient.square().sum().sqrt()
    if max_norm is None:
        return gradient, norm
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1.0), norm
