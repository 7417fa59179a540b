"""The surrogate that every algorithm shares, per sample; reductions and the ways to join two gates apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rgpo.core.divergences import k3
from rgpo.core.gate import Gate
from rgpo.core.gates import Open
from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor


class Dual(Protocol):
    """How the gate on the old ratio and the gate on the reference's ratio become one value."""

    def __call__(self, gate: Gate, ref_gate: Gate, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Detached:
    """g(d_old) sg[h(d_ref)]: the reference's gate scales the weight and is not climbed itself (our choice, the default)."""

    def __call__(self, gate: Gate, ref_gate: Gate, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage) * ref_gate(d_ref, advantage).detach()


@dataclass(frozen=True, kw_only=True)
class Product:
    """g(d_old) h(d_ref), both climbed: w = g' h + g h'. For A < 0 a one-sided h pushes bad actions up (an option)."""

    def __call__(self, gate: Gate, ref_gate: Gate, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage) * ref_gate(d_ref, advantage)


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """min(g(d_old), h(d_ref)): only the tighter gate is climbed (an option)."""

    def __call__(self, gate: Gate, ref_gate: Gate, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage).minimum(ref_gate(d_ref, advantage))


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """g((1-b) d_old + b d_ref): one gate around the geometric mean pi_old^(1-b) pi_ref^b (an option)."""

    anchor: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.anchor < 1, "dual.anchor", self.anchor, "must lie strictly between 0 and 1.")

    def __call__(self, gate: Gate, ref_gate: Gate, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate((1 - self.anchor) * d_old + self.anchor * d_ref, advantage)


class Surrogate(NamedTuple):
    """Per sample; shapes as logp_new."""

    loss: Tensor
    log_ratio: Tensor  # d = log pi_new/pi_old, nats
    gate_value: Tensor
    kl: Tensor  # nats, what the penalty multiplied


def surrogate(
    logp_new: Tensor,
    logp_old: Tensor,
    logp_ref: Tensor,
    advantage: Tensor,
    *,
    gate: Gate,
    ref_gate: Gate,
    dual: Dual,
    kl_coef: Tensor | float,
    kl: Tensor | None = None,
) -> Surrogate:
    """loss = -g A + kl_coef KL, whose gradient is -w A grad log pi + kl_coef grad KL.

    logp_* and advantage: any one shape (N,) or (B, T), nats. kl: exact KL per sample where the policy has it, else k3 of
    log pi_ref/pi_new on the samples. On-policy control has no reference model: logp_ref is logp_old there.
    """
    log_ratio = logp_new - logp_old
    gate_value = dual(gate, ref_gate, log_ratio, logp_new - logp_ref, advantage)
    kl = k3(logp_ref - logp_new) if kl is None else kl
    return Surrogate(-gate_value * advantage + kl_coef * kl, log_ratio, gate_value, kl)


def token_mean(mask: Tensor) -> Tensor:
    """Weights (B, T) under which a sum is the mean over all tokens: mask / sum mask (DAPO, arXiv 2503.14476)."""
    return mask / mask.sum()


def sequence_mean(mask: Tensor) -> Tensor:
    """Weights (B, T) under which a sum is the mean over sequences of each one's mean: mask / |y_i| / B; each needs a token."""
    return mask / mask.sum(-1, keepdim=True) / len(mask)


REDUCTIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean}


def check_dual(dual: Dual, ref_gate: Gate) -> None:
    """Refuse a reference gate that would be ignored."""
    if isinstance(dual, Geometric) and not isinstance(ref_gate, Open):
        raise ConfigError("dual=geometric: has one gate around both policies, so gate@ref_gate must stay open.")
