"""Integrals of functions with jumps and exponential tails, by adaptive Gauss-Lobatto quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rgpo.core.rollout import Array

Function = Callable[[Array], Array]
PANEL = 0.25  # width of the first panels, so that no feature of a gate hides between two nodes
ORDER = 10
TOLERANCE = 1e-13  # of a panel's error over the integral of |f|
DEEPEST = 50  # halvings, which locate a jump to rounding


def _lobatto(order: int) -> tuple[Array, Array]:
    """Nodes and weights on [-1, 1] with both ends among the nodes, so that no jump hides near an end."""
    basis = np.polynomial.legendre.Legendre.basis(order - 1)
    nodes = np.concatenate([[-1.0], basis.deriv().roots().real, [1.0]])
    return nodes, 2 / (order * (order - 1) * basis(nodes) ** 2)


NODES, WEIGHTS = _lobatto(ORDER)


def panels(function: Function, low: Array, high: Array) -> Array:
    """Gauss-Lobatto integral of function over each panel [low, high], (P,)."""
    half, middle = (high - low) / 2, (high + low) / 2
    x = middle[:, None] + half[:, None] * NODES
    integral: Array = half * (function(x.reshape(-1)).reshape(x.shape) @ WEIGHTS)
    return integral


def integrate(function: Function, low: float, high: float) -> float:
    """Integral of function (n,) -> (n,) over [low, high]: panels are halved until both halves agree with the whole."""
    edges = np.linspace(low, high, max(int((high - low) / PANEL), 1) + 1)
    a, b = edges[:-1], edges[1:]
    whole = panels(function, a, b)
    scale = max(float(np.abs(whole).sum()), 1e-300)
    total = 0.0
    for _ in range(DEEPEST):
        middle = (a + b) / 2
        left, right = panels(function, a, middle), panels(function, middle, b)
        agree = np.abs(left + right - whole) <= TOLERANCE * scale
        total += float((left + right)[agree].sum())
        open_ = ~agree
        a, b = np.concatenate([a[open_], middle[open_]]), np.concatenate([middle[open_], b[open_]])
        whole = np.concatenate([left[open_], right[open_]])
        if not len(a):
            return total
    return total + float(whole.sum())


def integrate_to_infinity(function: Function, low: float, high: float) -> float:
    """Integral over [low, infinity): up to high, then as the exponential that the last nat fits; inf if it does not decay."""
    near, far = (float(y) for y in function(np.array([high - 1.0, high])))
    if far == 0:
        return integrate(function, low, high)
    rate = math.log(near / far) if near / far > 0 else 0.0
    if rate <= 1e-9:
        return math.copysign(math.inf, far)
    return integrate(function, low, high) + far / rate
