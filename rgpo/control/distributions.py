"""Action distributions as named tuples of tensors, whose methods are pure functions that torch can compile.

Batch first, all values in nats. ``kl_from`` takes the other distribution as the plain tuple that a batch stores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Diagonal Gaussian: mean (N, A), log_std (N, A)."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """log N(action; mean, std^2) summed over A -> (N,)."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """sum log std + (1 + log 2 pi)/2 -> (N,)."""
        return (self.log_std + 0.5 * (1 + math.log(2 * math.pi))).sum(-1)

    def kl_from(self, old: tuple[Tensor, ...]) -> Tensor:
        """KL(old || self) -> (N,); old has the same fields."""
        return Gaussian(*old).kl(self)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in closed form -> (N,)."""
        shift = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        gap = self.log_std - other.log_std
        return (0.5 * (torch.expm1(2 * gap) + shift) - gap).sum(-1)


class Categorical(NamedTuple):
    """Categorical over A actions: normalized log-probabilities logp (N, A)."""

    logp: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """logp at action (N,) int64 -> (N,)."""
        return self.logp.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-sum p log p -> (N,)."""
        return -(self.logp.exp() * self.logp).sum(-1)

    def kl_from(self, old: tuple[Tensor, ...]) -> Tensor:
        """KL(old || self) -> (N,); old has the same fields."""
        return Categorical(*old).kl(self)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other) in closed form -> (N,)."""
        return (self.logp.exp() * (self.logp - other.logp)).sum(-1)


Distribution = Gaussian | Categorical
