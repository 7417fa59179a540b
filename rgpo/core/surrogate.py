"""The surrogate that every algorithm of the gate family optimizes, per sample, and the ways to combine two gates.

loss = -g A + kl_coef KL,    gradient = -w A grad log pi + kl_coef grad KL,    w = dg/dd
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rgpo.core.gate import GateLike
from rgpo.core.gates import Open
from rgpo.core.ranges import FRACTION, check_fields
from rgpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Combination(Protocol):
    """Combines the gate on the old policy's ratio and the gate on the reference's ratio into one value."""

    def __call__(self, gate: GateLike, ref_gate: GateLike, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Detached:
    """g(d_old) sg[h(d_ref)]: the reference's gate scales the weight and receives no gradient (our choice, the default)."""

    def __call__(self, gate: GateLike, ref_gate: GateLike, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage) * ref_gate(d_ref, advantage).detach()


@dataclass(frozen=True, kw_only=True)
class Product:
    """g(d_old) h(d_ref), both with gradient: w = g' h + g h'. For A < 0 a one-sided h pushes bad actions up (an option)."""

    def __call__(self, gate: GateLike, ref_gate: GateLike, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage) * ref_gate(d_ref, advantage)


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """min(g(d_old), h(d_ref)): only the smaller gate receives gradient (an option)."""

    def __call__(self, gate: GateLike, ref_gate: GateLike, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage).minimum(ref_gate(d_ref, advantage))


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """g((1-b) d_old + b d_ref): one gate around the geometric mean pi_old^(1-b) pi_ref^b (an option)."""

    anchor: float = field(metadata=FRACTION)

    def __post_init__(self) -> None:
        check_fields(self, "gate_combination")

    def __call__(self, gate: GateLike, ref_gate: GateLike, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate((1 - self.anchor) * d_old + self.anchor * d_ref, advantage)


def check_combination(combine: Combination, ref_gate: GateLike) -> None:
    """Raises: ConfigError for a reference gate that would be ignored."""
    if isinstance(combine, Geometric) and not isinstance(ref_gate, Open):
        raise ConfigError("gate_combination=geometric: has one gate around both policies; leave gate@ref_gate=open.")


class Surrogate(NamedTuple):
    """Per sample; shapes as d_old."""

    loss: Tensor
    gate_value: Tensor


def surrogate(
    d_old: Tensor,
    d_ref: Tensor,
    advantage: Tensor,
    kl: Tensor,
    *,
    gate: GateLike,
    ref_gate: GateLike,
    combine: Combination,
    kl_coef: Tensor | float,
) -> Surrogate:
    """loss = -combine(gate(d_old), ref_gate(d_ref)) A + kl_coef kl.

    d_old = log pi_new/pi_old, d_ref = log pi_new/pi_ref (d_old where there is no reference), nats; kl: nats, the divergence
    that is penalized, exact or estimated. All four have one shape, any shape.
    """
    assert d_old.shape == d_ref.shape == advantage.shape == kl.shape, (d_old.shape, d_ref.shape, advantage.shape, kl.shape)
    gate_value = combine(gate, ref_gate, d_old, d_ref, advantage)
    return Surrogate(-gate_value * advantage + kl_coef * kl, gate_value)
