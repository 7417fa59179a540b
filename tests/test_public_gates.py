"""The public module of gates, the ranges of their parameters, and gates of one's own."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from rgpo import gates
from rgpo.core import batch_gates, cdf, old_probability
from rgpo.core import gates as all_gates
from rgpo.core.ranges import declared_range
from rgpo.core.surrogate import Detached, surrogate
from rgpo.errors import ConfigError
from rgpo.gates import POSITIVE, AdaptiveSharpness, Gate

MODULES = (all_gates, batch_gates, cdf, old_probability)
CLASSES = [
    c
    for c in {c for m in MODULES for _, c in inspect.getmembers(m, inspect.isclass)}
    if issubclass(c, Gate) and not inspect.isabstract(c)
]
CLASSES.sort(key=lambda cls: cls.__name__)
VALID = {"sharpness": 4.0, "sharpness_neg": 4.0, "center": 1.5, "cap": 3.0, "eps_low": 0.2, "eps_high": 0.2, "budget": 0.75}
VALID |= {"floor": 0.5, "softness": 0.1, "nu": 0.1, "delta_low": 0.2, "delta_high": 0.2, "second_moment": 0.04}
BAD: list[tuple[type[Gate], str, Any]] = []
BAD += [(gates.Sigmoid, "sharpness", value) for value in (0.0, -1.0, math.nan, math.inf, "steep", None)]
BAD += [(gates.Clip, key, value) for key in ("eps_low", "eps_high") for value in (0.0, 1.0, -0.2, math.nan)]
BAD += [(gates.Spo, "eps_high", 1.5), (gates.Sapo, "sharpness_neg", 0.0), (gates.Power, "center", 0.0)]
BAD += [(gates.Budget, "budget", -1.0), (gates.Log, "scale", "foo")]
CAPPED = (gates.Clip, gates.Cispo, gates.SignAwareSigmoid)
BAD += [(cls, "cap", value) for cls in CAPPED for value in (1.0, 0.5, math.nan, math.inf)]
BAD += [(cls, "cap", None) for cls in (gates.Cispo, gates.SignAwareSigmoid)]
BAD += [(gates.Clamped, "cap", 0.9), (gates.Clamped, "floor", 1.1), (gates.Ano, "nu", 1.0), (gates.KLip, "softness", 0.0)]
BAD += [(gates.DppoTV, "delta_low", 1.0), (gates.DppoKL, "delta_high", 0.0), (gates.M2po, "second_moment", 0.0)]
BAD += [(gates.SigmoidMatched, "sharpness", value) for value in (1.0, 0.5, math.nan, math.inf)]


@pytest.mark.parametrize(("cls", "key", "value"), BAD, ids=[f"{c.__name__}-{k}={v}" for c, k, v in BAD])
def test_bad_fields_are_refused_with_key_value_and_remedy(cls: type[Gate], key: str, value: Any) -> None:
    valid = {f.name: VALID[f.name] for f in fields(cls) if f.name in VALID}
    cls(**valid)
    with pytest.raises(ConfigError, match=rf"^gate\.{key}={value}: .{{10,}}\.$"):
        cls(**{**valid, key: value})


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_parameter_declares_its_range_and_has_no_default_in_python(cls: type[Gate]) -> None:
    for parameter in fields(cls):
        assert declared_range(parameter) is not None
        assert parameter.default is MISSING or parameter.name == "scale"


@pytest.mark.parametrize("cls", [Gate, AdaptiveSharpness, *CLASSES], ids=lambda cls: cls.__name__)
def test_the_public_module_has_every_gate(cls: type) -> None:
    assert getattr(gates, cls.__name__) is cls
    assert cls.__name__ in gates.__all__


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("SigmoidSigned", r"^SigmoidSigned is now rgpo\.gates\.SignAwareSigmoid$"),
        ("Curve", r"^Curve is now rgpo\.gates\.Gate$"),
        ("Nope", "'Nope'"),
    ],
)
def test_the_public_module_names_what_replaced_an_old_name(name: str, match: str) -> None:
    with pytest.raises(AttributeError, match=match):
        getattr(gates, name)


def test_importing_gates_does_not_import_torch() -> None:
    code = "import sys, rgpo.gates; rgpo.gates.Sigmoid(sharpness=1.0); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@dataclass(frozen=True, kw_only=True)
class Cauchy(Gate):
    """A new gate is a range and a curve."""

    sharpness: float = field(metadata=POSITIVE)

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * d).atan() / math.pi + 0.5


@dataclass(frozen=True, kw_only=True)
class Narrow(Cauchy):
    """The same gate with a range of its own."""

    sharpness: float = field(metadata=gates.accept(lambda k: 2 <= k <= 8, "must lie in [2, 8]."))


@dataclass(frozen=True, kw_only=True)
class Shifted(Cauchy):
    """A gate with a Python number computed from its sharpness."""

    constants_depend_on_sharpness = True

    def curve(self, d: Tensor, advantage: Tensor) -> Tensor:
        return (self.sharpness * d - math.log(self.sharpness)).sigmoid()


def test_a_gate_of_ones_own_works_in_the_objective() -> None:
    gate = Cauchy(sharpness=2.0, scale="unit")
    d = torch.linspace(-1, 1, 11, dtype=torch.float64).requires_grad_()
    advantage = torch.linspace(-1, 1, 11).double()
    loss, _ = surrogate(d, d, advantage, d * 0, gate=gate, ref_gate=gates.Open(), combine=Detached(), kl_coef=0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), d)
    torch.testing.assert_close(gradient, -advantage / (1 + 4 * d.detach().square()))


@pytest.mark.parametrize(
    ("cls", "value", "message"),
    [
        (Cauchy, -1, "gate.sharpness=-1: must be a positive, finite number."),
        (Cauchy, math.nan, "gate.sharpness=nan: must be a positive, finite number."),
        (Narrow, 8.5, "gate.sharpness=8.5: must lie in [2, 8]."),
    ],
)
def test_a_gate_of_ones_own_refuses_what_its_declared_range_does_not_contain(cls: type[Cauchy], value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cls(sharpness=value)
    assert str(refused.value) == message


@pytest.mark.parametrize("scale", ["none", "unit"])
def test_a_gate_of_ones_own_adapts_its_sharpness(scale: str) -> None:
    bounds = {"kl_target": 0.01, "rate": 0.2, "min_sharpness": 2.0, "max_sharpness": 8.0}
    gate = AdaptiveSharpness(gate=Narrow(sharpness=4.0, scale=scale), **bounds)
    gate.observe(1.0)
    d = torch.linspace(-1, 1, 9)
    assert gate.sharpness == pytest.approx(4.0 * math.exp(0.2))
    torch.testing.assert_close(gate(d, d), Cauchy(sharpness=gate.sharpness, scale=scale)(d, d))
    for key, value in (("min_sharpness", 1.0), ("max_sharpness", 60.0)):  # it would leave the declared range
        with pytest.raises(ConfigError, match=rf"^gate\.{key}={value}: must lie in \[2, 8\]\.$"):
            AdaptiveSharpness(gate=Narrow(sharpness=4.0), **{**bounds, key: value})
    with pytest.raises(ConfigError, match=r"^gate\.gate=Shifted: .*choose SigmoidLog instead\.$"):
        AdaptiveSharpness(gate=Shifted(sharpness=4.0), **bounds)


def test_a_gate_without_a_curve_cannot_be_made() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Empty(Gate):
        pass

    with pytest.raises(TypeError, match="curve"):
        Empty()
