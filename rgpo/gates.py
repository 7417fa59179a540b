"""The public gates: the base classes, helpers for writing a curve of your own, and every gate of the project.

    @dataclass(frozen=True, kw_only=True)
    class Cauchy(Gate):
        sharpness: float = field(metadata=POSITIVE)

        def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
            return (self.sharpness * d).atan() / math.pi + 0.5

In yaml, ``_target_: rgpo.gates.X`` refers to this module. Importing it does not import torch.
"""

from __future__ import annotations

from rgpo.core.adaptive_gate import AdaptiveSharpness
from rgpo.core.batch_gates import Bapo, ClipCov, KlCov, M2po, R2vpo
from rgpo.core.gate import (
    BatchGate,
    Gate,
    GateBatch,
    GateLike,
    OldProbabilityGate,
    bounded,
    capped_ratio,
    ratio,
    ratio_minus_one,
    softplus,
    weight,
)
from rgpo.core.gates import (
    Ano,
    Arctan,
    Budget,
    BySign,
    Cdf,
    Cispo,
    Clamped,
    Clip,
    Erf,
    Flipped,
    GaussianLog,
    Identity,
    KLip,
    Log,
    Open,
    Power,
    Pspo,
    Rational,
    Sapo,
    Sided,
    Sigmoid,
    SigmoidLog,
    SigmoidMatched,
    SignAwareSigmoid,
    Softsign,
    Spo,
    Tanh,
)
from rgpo.core.old_probability import DppoKL, DppoTV, Ipo
from rgpo.core.ranges import ABOVE_ONE, FRACTION, POSITIVE, accept, one_of

__all__ = ["BatchGate", "Gate", "GateBatch", "GateLike", "OldProbabilityGate", "Sided"]
__all__ += ["bounded", "capped_ratio", "ratio", "ratio_minus_one", "softplus", "weight"]
__all__ += ["ABOVE_ONE", "FRACTION", "POSITIVE", "accept", "one_of"]
__all__ += ["AdaptiveSharpness", "Ano", "Arctan", "Bapo", "Budget", "BySign", "Cdf", "Cispo", "Clamped", "Clip", "ClipCov"]
__all__ += ["DppoKL", "DppoTV", "Erf", "Flipped", "GaussianLog", "Identity", "Ipo", "KLip", "KlCov", "Log", "M2po", "Open"]
__all__ += ["Power", "Pspo", "R2vpo", "Rational", "Sapo", "Sigmoid", "SigmoidLog", "SigmoidMatched", "SignAwareSigmoid"]
__all__ += ["Softsign", "Spo", "Tanh"]

RENAMED = {"Curve": "Gate", "SigmoidSigned": "SignAwareSigmoid"}


def __getattr__(name: str) -> object:
    if name in RENAMED:
        raise AttributeError(f"{name} is now rgpo.gates.{RENAMED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
