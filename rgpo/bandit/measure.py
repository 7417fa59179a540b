"""Mean and variance of a gate's weight and of its policy gradient under a known law of the ratio: sampled, and exact.

    d = log r ~ law,  A = +1 with probability 3/4, else -1,  s ~ N(1, 1),  all three independent
    E[w A s] = E[A w],  E[(w A s)^2] = 2 E[w^2],  w = dg/dd at (d, A)

Nothing is trained. The exact values are integrals over the law, by quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from rgpo.bandit.laws import Law
from rgpo.core.gate import GateLike, weight
from rgpo.core.rollout import Array
from rgpo.errors import require

P_POSITIVE = 0.75  # probability of A = +1
SCORE_MEAN, SCORE_SQUARE = 1.0, 2.0  # E s, E s^2
FEWEST, MOST = 32, 10**9  # samples of one estimate


class Samples(NamedTuple):
    """Draws of the bandit under the old policy, each (n,) float64."""

    log_ratio: Array  # nats
    advantage: Array  # +1 or -1
    score: Array


class Moments(NamedTuple):
    """Of the weight w and of one sample's gradient w A s; inf where a moment diverges."""

    weight_mean: float
    weight_var: float
    gradient_mean: float
    gradient_var: float


def draw(law: Law, num_samples: int, rng: np.random.Generator) -> Samples:
    """Draw n ratios, advantages and scores."""
    d = law.draw(num_samples, rng)
    advantage = np.where(rng.random(num_samples) < P_POSITIVE, 1.0, -1.0)
    return Samples(d, advantage, rng.standard_normal(num_samples) + SCORE_MEAN)


def gradients(gate: GateLike, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight w and the gradient w A s of each sample, (n,)."""
    d, advantage, score = (torch.from_numpy(x) for x in samples)
    w = weight(gate, d, advantage)
    return w, w * advantage * score


def sample(gate: GateLike, law: Law, num_samples: int, rng: np.random.Generator) -> Moments:
    """Estimate the moments from n samples; variances are the unbiased ones."""
    w, gradient = gradients(gate, draw(law, num_samples, rng))
    return Moments(w.mean().item(), w.var().item(), gradient.mean().item(), gradient.var().item())


def weight_moment(gate: GateLike, law: Law, power: int, sign: float) -> float:
    """E w^power by quadrature for advantages of one sign; inf where it diverges."""

    def function(d: Array) -> Array:
        log_ratio = torch.from_numpy(d)
        w: Array = weight(gate, log_ratio, torch.full_like(log_ratio, sign)).numpy() ** power
        return w

    with np.errstate(over="ignore", invalid="ignore"):  # an infinite square is an answer
        return law.expectation(function)


def truth(gate: GateLike, law: Law) -> Moments:
    """The exact moments by quadrature.

    E w = sum_A p_A E[w | A],  Var(w A s) = 2 E w^2 - (sum_A p_A A E[w | A])^2
    """
    probability = {1.0: P_POSITIVE, -1.0: 1 - P_POSITIVE}
    first = {sign: weight_moment(gate, law, 1, sign) for sign in probability}
    mean = sum(p * first[sign] for sign, p in probability.items())
    square = sum(p * weight_moment(gate, law, 2, sign) for sign, p in probability.items())
    gradient = SCORE_MEAN * sum(p * sign * first[sign] for sign, p in probability.items())
    return Moments(mean, max(square - mean**2, 0.0), gradient, SCORE_SQUARE * square - gradient**2)


def growing_sizes(num_samples: int, growth: float, num_sizes: int) -> list[int]:
    """num_samples growth^i, rounded, for i < num_sizes.

    Raises: ConfigError if the first is too small for a variance or the last too large.
    """
    require(num_samples >= FEWEST, "num_samples", num_samples, f"must be at least {FEWEST}.")
    require(1 <= growth < math.inf, "growth", growth, "must be a finite number of at least 1.")
    require(num_sizes >= 1, "num_sizes", num_sizes, "must be at least 1.")
    fits = math.log(num_samples) + (num_sizes - 1) * math.log(growth) <= math.log(MOST)
    require(
        fits, "num_sizes", num_sizes, f"would draw over {MOST:,} samples for one row; lower num_sizes, growth or num_samples."
    )
    return [round(num_samples * growth**i) for i in range(num_sizes)]


def measure(gate: GateLike, law: Law, sizes: Sequence[int], seed: int) -> pd.DataFrame:
    """One row per sample size: num_samples, and each moment beside its exact value (weight_mean, weight_mean_true, ...)."""
    rng = np.random.default_rng(int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1)  # as rgpo-run seeds a task
    exact = truth(gate, law)
    rows = []
    for size in sizes:
        row: dict[str, float] = {"num_samples": size}
        for name, estimate, true in zip(Moments._fields, sample(gate, law, size, rng), exact, strict=True):
            row |= {name: estimate, f"{name}_true": true}
        rows.append(row)
    return pd.DataFrame(rows)
