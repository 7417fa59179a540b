"""The surrogate that every algorithm of the gate family optimizes, per sample, and the ways to combine two gates.

loss = -g A + kl_coef KL,    gradient = -w A grad log pi + kl_coef grad KL,    w = dg/dd
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from rgpo.core.gate import Curve, GateBatch, GateLike
from rgpo.core.gates import Open
from rgpo.core.ranges import FRACTION, check_fields
from rgpo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Combination(Protocol):
    """Combines the gate on the old policy's ratio and the gate on the reference's ratio into one value.

    Any further inputs of the gates, such as logp_old, are already bound.
    """

    def __call__(self, gate: Curve, ref_gate: Curve, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Detached:
    """g(d_old) sg[h(d_ref)]: the reference's gate scales the weight and receives no gradient (our choice, the default)."""

    def __call__(self, gate: Curve, ref_gate: Curve, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage) * ref_gate(d_ref, advantage).detach()


@dataclass(frozen=True, kw_only=True)
class Product:
    """g(d_old) h(d_ref), both with gradient: w = g' h + g h'. For A < 0 a one-sided h pushes bad actions up (an option)."""

    def __call__(self, gate: Curve, ref_gate: Curve, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage) * ref_gate(d_ref, advantage)


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """min(g(d_old), h(d_ref)): only the smaller gate receives gradient (an option)."""

    def __call__(self, gate: Curve, ref_gate: Curve, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate(d_old, advantage).minimum(ref_gate(d_ref, advantage))


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """g((1-b) d_old + b d_ref): one gate around the geometric mean pi_old^(1-b) pi_ref^b (an option)."""

    anchor: float = field(metadata=FRACTION)

    def __post_init__(self) -> None:
        check_fields(self, "gate_combination")

    def __call__(self, gate: Curve, ref_gate: Curve, d_old: Tensor, d_ref: Tensor, advantage: Tensor) -> Tensor:
        return gate((1 - self.anchor) * d_old + self.anchor * d_ref, advantage)


def check_combination(combine: Combination, gate: GateLike, ref_gate: GateLike) -> None:
    """Raises: ConfigError if the reference gate would be ignored, or a gate reads inputs that this combination cannot supply."""
    if isinstance(combine, Geometric):
        if not isinstance(ref_gate, Open):
            raise ConfigError("gate_combination=geometric: has one gate around both policies; leave gate@ref_gate=open.")
        if gate.needs_logp_old or gate.needs_batch:
            name = type(gate).__name__
            raise ConfigError(f"gate_combination=geometric: gate {name} reads more than its log ratio; choose another gate.")
    if ref_gate.needs_batch:
        name = type(ref_gate).__name__
        raise ConfigError(f"gate@ref_gate={name}: has bounds of the old policy's batch; use it as gate=, and another one here.")


class Surrogate(NamedTuple):
    """Surrogate of each sample; same shape as d_old."""

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
    logp_old: Tensor | None = None,
    batch: GateBatch | None = None,
) -> Surrogate:
    """loss = -combine(gate(d_old), ref_gate(d_ref)) A + kl_coef kl.

    d_old = log pi_new/pi_old, d_ref = log pi_new/pi_ref (d_old if there is no reference), nats; kl: the penalized divergence,
    exact or estimated, nats. These and advantage share one shape, which may be any. logp_old: log pi_old in that shape, for
    gates that read it; batch: the samples from which batch bounds are computed, None: these.
    """
    assert d_old.shape == d_ref.shape == advantage.shape == kl.shape, (d_old.shape, d_ref.shape, advantage.shape, kl.shape)
    curve: Curve = gate
    if gate.needs_batch:
        curve = gate.prepare(batch or GateBatch(d_old.detach(), advantage, logp_old))
    if gate.needs_logp_old or gate.needs_batch:
        curve = partial(curve, logp_old=logp_old)
    ref_curve: Curve = ref_gate
    if ref_gate.needs_logp_old:
        ref_curve = partial(ref_gate, logp_old=None if logp_old is None else logp_old + (d_old - d_ref).detach())
    gate_value = combine(curve, ref_curve, d_old, d_ref, advantage)
    return Surrogate(-gate_value * advantage + kl_coef * kl, gate_value)


class Objective(Protocol):
    """``GateObjective``, or a function."""

    def __call__(
        self,
        d_old: Tensor,
        d_ref: Tensor,
        advantage: Tensor,
        kl: Tensor,
        *,
        kl_coef: Tensor | float,
        logp_old: Tensor | None = None,
        batch: GateBatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and gate value of each sample, (n,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class GateObjective:
    """``surrogate`` with its gates and their combination bound."""

    gate: GateLike
    ref_gate: GateLike
    combine: Combination

    @property
    def needs_batch(self) -> bool:
        """True if the gate has bounds that are computed from all samples of a gradient step."""
        return self.gate.needs_batch

    def __call__(
        self,
        d_old: Tensor,
        d_ref: Tensor,
        advantage: Tensor,
        kl: Tensor,
        *,
        kl_coef: Tensor | float,
        logp_old: Tensor | None = None,
        batch: GateBatch | None = None,
    ) -> Surrogate:
        return surrogate(
            d_old,
            d_ref,
            advantage,
            kl,
            gate=self.gate,
            ref_gate=self.ref_gate,
            combine=self.combine,
            kl_coef=kl_coef,
            logp_old=logp_old,
            batch=batch,
        )
