"""Gates that are the distribution of a random acceptance threshold."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from gate_options import load_gate
from torch import Tensor

from rgpo import gates
from rgpo.errors import ConfigError
from rgpo.gates import weight

DENSITY: dict[str, Callable[[Tensor], Tensor]] = {  # p(r) at k = 4, c = 1.5, written out
    "logistic": lambda r: 4 * torch.sigmoid(4 * (r - 1.5)) * torch.sigmoid(-4 * (r - 1.5)),
    "normal": lambda r: 4 / math.sqrt(math.pi) * torch.exp(-16 * (r - 1.5) ** 2),
    "cauchy": lambda r: 4 / math.pi / (1 + 16 * (r - 1.5) ** 2),
    "double_lomax": lambda r: 2 / (1 + 4 * (r - 1.5).abs()) ** 2,
    "hyperbolic": lambda r: 2 / torch.cosh(4 * (r - 1.5)) ** 2,
    "uniform": lambda r: 4.0 * ((r - 1.5).abs() < 1 / 8),
    "loglogistic": lambda r: 4 / r * (r / 1.5) ** 4 / (1 + (r / 1.5) ** 4) ** 2,
    "lognormal": lambda r: 4 / r / math.sqrt(2 * math.pi) * torch.exp(-8 * (r / 1.5).log() ** 2),
    "lomax": lambda r: 4 / 1.5 * (1 + r / 1.5) ** -5,
    "gamma": lambda r: (4 / 1.5) ** 4 * r**3 * torch.exp(-4 * r / 1.5) / math.gamma(4),
}


@pytest.mark.parametrize("name", DENSITY)
def test_the_weight_is_the_ratio_times_the_density_of_the_threshold(name: str) -> None:
    gate = gates.Cdf(distribution=name, sharpness=4.0, center=1.5)
    d = torch.linspace(-4, 3, 1401, dtype=torch.float64) + 1e-5
    r = d.exp()
    torch.testing.assert_close(weight(gate, d, d * 0), r * DENSITY[name](r), rtol=1e-7, atol=1e-9)
    value = gate(torch.linspace(-300, 300, 1201), torch.zeros(1201))
    assert value.min() >= 0 and value.max() == 1 and (value.diff() >= 0).all()
    assert weight(gate, torch.tensor([120.0]).double(), torch.ones(1).double()) < 4  # bounded


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("sigmoid", "logistic"),
        ("erf", "normal"),
        ("arctan", "cauchy"),
        ("softsign", "double_lomax"),
        ("tanh", "hyperbolic"),
        ("sigmoid_log", "loglogistic"),
        ("gaussian_log", "lognormal"),
        ("power", "lomax"),
        ("rational", "loglogistic"),
    ],
)
def test_named_gates_are_distributions_to_the_bit(name: str, distribution: str) -> None:
    gate = load_gate(name)
    center = getattr(gate, "center", 1.0)
    same = gates.Cdf(distribution=distribution, sharpness=gate.sharpness, center=center)
    d = torch.linspace(-50, 50, 2001)
    assert torch.equal(gate(d, d), same(d, d))


def test_limits_of_a_distribution_are_refused_in_one_sentence() -> None:
    for change, match in (
        ({"distribution": "gama"}, r"gate\.distribution=gama: must be logistic, .* or gamma\."),
        ({"distribution": "gamma", "sharpness": 1e5}, r"gate\.sharpness=100000\.0: must lie in \[0\.001, 10000\] for .*\."),
        ({"distribution": "cauchy", "sharpness": 1e25}, r"gate\.sharpness=1e\+25: must lie in .*\."),
    ):
        with pytest.raises(ConfigError, match=f"^{match}$"):
            gates.Cdf(**{"distribution": "logistic", "sharpness": 1.0, "center": 1.0} | change)
