"""A linear value function on a language model's hidden states, trained jointly with the policy or fitted separately."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rgpo.learning.types import Batch


class ValueHead:
    """V(s) = w h(s) + b, initially zero; h is the hidden state from which the next token is predicted.

    flat (D + 1,) contains w and b and shares memory with ``linear``, whose parameters torch's optimizers update.
    """

    def __init__(self, hidden_size: int, device: torch.device, read_features: Callable[[Batch], Tensor]) -> None:
        self.flat = torch.zeros(hidden_size + 1, device=device)
        self.linear = nn.Linear(hidden_size, 1, device=device)
        self.linear.weight = nn.Parameter(self.flat[:-1].view(1, -1))
        self.linear.bias = nn.Parameter(self.flat[-1:])
        self._read_features = read_features

    def __call__(self, hidden_nD: Tensor) -> Tensor:
        """Values (n,) of hidden states (n, D)."""
        values: Tensor = self.linear(hidden_nD.to(self.linear.weight.dtype)).squeeze(-1)
        return values

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Hidden states (N, D) float32 of a batch's tokens."""
        return self._read_features(batch).to(self.flat.dtype)

    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """Values (n,) of features (n, D) with parameters flat (D + 1,)."""
        return features @ flat[:-1] + flat[-1]
