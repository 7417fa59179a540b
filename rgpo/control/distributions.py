"""Action distributions as tuples of tensors, whose methods are pure functions that torch can compile.

Batch first, all values in nats. ``kl_from`` takes the other distribution as the plain tuple that a batch stores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rgpo.control.actions import Head


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


class Bernoulli(NamedTuple):
    """Independent bits, with logits (N, A) of being 1."""

    logits: Tensor

    def log_prob(self, action: Tensor) -> Tensor:
        """sum a l - log(1 + e^l) over bits a in {0, 1}, (N, A) -> (N,)."""
        return (action * self.logits - softplus(self.logits)).sum(-1)

    def entropy(self) -> Tensor:
        """sum log(1 + e^l) - sigma(l) l -> (N,)."""
        return (softplus(self.logits) - self.logits.sigmoid() * self.logits).sum(-1)

    def kl_from(self, old: tuple[Tensor, ...]) -> Tensor:
        """KL(old || self) -> (N,); old has the same fields."""
        return Bernoulli(*old).kl(self)

    def kl(self, other: Bernoulli) -> Tensor:
        """KL(self || other) in closed form -> (N,)."""
        p = self.logits.sigmoid()
        return (p * (self.logits - other.logits) - softplus(self.logits) + softplus(other.logits)).sum(-1)


Factor = Gaussian | Categorical | Bernoulli


@dataclass(frozen=True)
class Product:
    """Independent factors: log-probabilities, entropies and KL divergences are sums over them."""

    factors: tuple[Factor, ...]

    def __iter__(self) -> Iterator[Tensor]:
        """The parameters of all factors, which a batch stores."""
        return (x for factor in self.factors for x in factor)

    def log_prob(self, action: Tensor) -> Tensor:
        """sum log p_i(a_i), action (N, A) in the order of the factors -> (N,)."""
        total, begin = action.new_zeros(len(action)), 0
        for factor in self.factors:
            if isinstance(factor, Categorical):
                total, begin = total + factor.log_prob(action[:, begin].long()), begin + 1
            else:
                end = begin + factor[0].shape[-1]
                total, begin = total + factor.log_prob(action[:, begin:end]), end
        return total

    def entropy(self) -> Tensor:
        """sum H(p_i) -> (N,)."""
        return torch.stack([factor.entropy() for factor in self.factors]).sum(0)

    def kl_from(self, old: tuple[Tensor, ...]) -> Tensor:
        """KL(old || self) -> (N,); old as ``__iter__`` lists it."""
        rest, terms = iter(old), []
        for factor in self.factors:
            terms.append(factor.kl_from(tuple(next(rest) for _ in factor)))
        return torch.stack(terms).sum(0)


Distribution = Factor | Product


def make_distribution(heads: Sequence[Head], output: Tensor, log_std: Tensor | None) -> Distribution:
    """The distribution given by a network's outputs (N, O); log_std (number of Gaussians,) is the same in every state."""
    if len(heads) == 1:
        return _factor(heads[0].kind, output, log_std)
    factors, begin = [], 0
    for head, part in zip(heads, torch.split(output, [head.size for head in heads], -1), strict=True):
        own = None
        if head.kind == "gaussian":
            assert log_std is not None
            own, begin = log_std[begin : begin + head.size], begin + head.size
        factors.append(_factor(head.kind, part, own))
    return Product(tuple(factors))


def _factor(kind: str, output: Tensor, log_std: Tensor | None) -> Factor:
    if kind == "categorical":
        return Categorical(output.log_softmax(-1))
    if kind == "bernoulli":
        return Bernoulli(output)
    assert log_std is not None
    return Gaussian(output, torch.broadcast_to(log_std, output.shape))
