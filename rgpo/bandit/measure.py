"""A bandit whose probability ratios have a known law: what a gate does to mean and variance, beside the truth.

Nothing is learnt. The parameters stay where they are and every iteration draws more samples under the old policy mu:

    gaussian   x ~ N(0, 1), pi = N(mean, std^2):  d = log N(x; mean, std^2) - log N(x; 0, 1), tail index std^2/(std^2-1)
    pareto     r = x_m U^(-1/a), x_m = (a-1)/a so that E r = 1:  d = log x_m - log(U)/a, tail index a

A = +1 with probability 3/4, else -1, and the score s ~ N(1, 1), both independent of the ratio, so that
E[w A s] = E[A w] and E[(w A s)^2] = 2 E[w^2].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rgpo.bandit.quadrature import integrate_to_infinity
from rgpo.core.advantages import GAE
from rgpo.core.gate import Gate, weight
from rgpo.core.rollout import Array, Batch, Moved, Rollout
from rgpo.distributed import refuse_many
from rgpo.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.algorithm import Algorithm

P_POSITIVE = 0.75  # probability of A = +1
SCORE_MEAN, SCORE_SQUARE = 1.0, 2.0  # E s, E s^2
FURTHEST = 290.0  # nats; where the quadrature hands over to an exponential tail


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Old policy N(0, 1), new policy N(mean, std^2); E r^2 is finite for std^2 < 2 only.

    Second moments of unbounded weights are exact to 1e-6 up to std^2 = 1.9; closer to 2 their tail is extrapolated.
    """

    mean: float = 0.5
    std: float = 1.2

    def __post_init__(self) -> None:
        require(self.std > 0, "task.ratio.std", self.std, "must be positive.")

    def draw(self, num_samples: int, rng: np.random.Generator) -> Array:
        """Log ratios (n,) of samples of the old policy."""
        return self.log_ratio(rng.standard_normal(num_samples))

    def log_ratio(self, x: Array) -> Array:
        """d = log N(x; mean, std^2) - log N(x; 0, 1)."""
        d: Array = -math.log(self.std) - (x - self.mean) ** 2 / (2 * self.std**2) + x**2 / 2
        return d

    def kl(self) -> float:
        """KL(old || new) in nats."""
        return math.log(self.std) + (1 + self.mean**2) / (2 * self.std**2) - 0.5

    def expectation(self, function: Any) -> float:
        """E f(d) under the old policy, for f (n,) -> (n,)."""

        def side(sign: float) -> float:
            def integrand(x: Array) -> Array:
                density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
                out: Array = function(self.log_ratio(sign * x)) * density
                return out

            return integrate_to_infinity(integrand, 0.0, self._reach(sign))

        return side(1.0) + side(-1.0)

    def _reach(self, sign: float) -> float:
        """How far out |d| stays below FURTHEST and the normal density above e^-700."""
        x = np.linspace(0.0, 37.0, 3701)
        inside = np.abs(self.log_ratio(sign * x)) < FURTHEST
        return float(x[inside][-1])


@dataclass(frozen=True, kw_only=True)
class Pareto:
    """Ratios with a power-law tail, P(r > t) = (x_m/t)^a; E r^2 is finite for a > 2 only."""

    tail_index: float = 1.5

    def __post_init__(self) -> None:
        require(self.tail_index > 1, "task.ratio.tail_index", self.tail_index, "must be above 1, so that E r = 1 exists.")

    @property
    def log_smallest(self) -> float:
        """log x_m."""
        return math.log((self.tail_index - 1) / self.tail_index)

    def draw(self, num_samples: int, rng: np.random.Generator) -> Array:
        """Log ratios (n,)."""
        d: Array = self.log_smallest + rng.standard_exponential(num_samples) / self.tail_index
        return d

    def kl(self) -> float:
        """E[-d] in nats."""
        return -self.log_smallest - 1 / self.tail_index

    def expectation(self, function: Any) -> float:
        """E f(d), for f (n,) -> (n,)."""
        a, low = self.tail_index, self.log_smallest
        return integrate_to_infinity(lambda d: function(d) * a * np.exp(-a * (d - low)), low, FURTHEST)


@dataclass(kw_only=True)
class Bandit:
    """Iteration i draws num_samples growth^i ratios; setup() seeds them."""

    ratio: Gaussian | Pareto
    num_samples: int = 100
    growth: float = 10**0.25

    def __post_init__(self) -> None:
        require(self.num_samples >= 32, "task.num_samples", self.num_samples, "needs at least 32 samples.")
        require(self.growth >= 1, "task.growth", self.growth, "must be at least 1.")

    memory_advice: ClassVar[str] = "lower task.num_samples, task.growth or num_iterations"

    def check(self) -> None:
        """There is nothing to look up. ConfigError for many processes."""
        refuse_many("bandit")

    def admit(self, algorithm: Algorithm) -> Algorithm:
        """The algorithm with its update replaced by one that only measures. ConfigError for what would be ignored."""
        algorithm.refuse_reference("bandit")
        if not isinstance(algorithm.advantage, GAE):
            raise ConfigError("advantage: the bandit's truth holds for the raw A = +-1, use advantage=gae.")
        return replace(algorithm, update=Measure(), advantage=replace(algorithm.advantage, normalize="none"))

    def plan_iterations(self, total_env_steps: int) -> int:
        """The fewest iterations that draw total_env_steps samples in all."""
        drawn, count = 0, 0
        while drawn < total_env_steps:
            drawn += self._size(count)
            count += 1
        return count

    def _size(self, iteration: int) -> int:
        return round(self.num_samples * self.growth**iteration)

    def setup(self, seed: int, gamma: float) -> None:
        """Seed the samples; gamma has no meaning here, an episode is one step."""
        self.rng = np.random.default_rng(seed)
        self.iteration = 0

    def make_policy(self, seed: int) -> FixedRatios:
        """The frozen policy; nothing in it is random."""
        return FixedRatios(self.ratio)

    def collect(self, policy: FixedRatios) -> Rollout:
        """n samples as n environments of one step: action d, observation s, reward A."""
        n = self._size(self.iteration)
        self.iteration += 1
        d = self.ratio.draw(n, self.rng).reshape(1, n, 1)
        advantage = np.where(self.rng.random((1, n)) < P_POSITIVE, 1.0, -1.0)
        score = self.rng.standard_normal((1, n, 1)) + SCORE_MEAN
        ended, nothing = np.ones((1, n), bool), np.zeros((1, n))
        return Rollout(score, d, advantage, ended, ended, nothing, nothing, {})

    def evaluate(self, policy: FixedRatios) -> dict[str, float]:
        """A frozen policy has nothing to evaluate."""
        return {}

    def headline(self, metrics: Mapping[str, Any]) -> str:
        """What a progress line says of this task."""
        return f"weight {metrics['bandit/weight_mean']:.4f} (true {metrics['bandit/weight_mean_true']:.4f})"

    def summary(self, metrics: Mapping[str, Any]) -> list[str]:
        """What the end of a run says of this task."""
        return [self.headline(metrics)]

    def take_samples(self) -> list[dict[str, Any]]:
        """Ratios leave no samples."""
        return []

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state, "iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]
        self.iteration = state["iteration"]


class FixedRatios:
    """A policy without parameters, whose log ratios are the rollout's actions."""

    def __init__(self, ratio: Gaussian | Pareto) -> None:
        self.ratio = ratio

    def state_dict(self) -> Tensor:
        """No parameters."""
        import torch

        return torch.zeros(0)

    def load_state_dict(self, flat: Tensor) -> None:
        """Nothing to take over."""

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> tuple[Batch, dict[str, Any]]:
        """N samples in float64; logp_old is -d, so that the new log-probability is 0."""
        import torch

        score, d, a = (torch.from_numpy(x.reshape(-1)) for x in (rollout.observation, rollout.action, advantage))
        return Batch(score, d, -d, (), a, a, a * 0), {
            "advantage/mean": a.mean().item(),
            "advantage/std": a.std().item(),
        }

    def moved(self, batch: Batch) -> Moved:
        """The fixed log ratios and the exact KL."""
        d = batch.action
        return Moved(d, d * 0 + self.ratio.kl(), d * math.nan)

    def group_gradients(self, batch: Batch, advantage: Tensor, objective: Any, groups: Array) -> Tensor:
        """Mean of w A s over each group, (M, 1)."""
        import torch

        product = weight(objective.keywords["gate"], batch.action, batch.advantage) * batch.advantage * batch.observation
        return product[torch.from_numpy(groups)].mean(1, keepdim=True)


class Measure:
    """An update that takes no step: mean and variance of w and of w A s by sampling, and by quadrature."""

    trust_region = False
    note = "nothing is learnt: weights are measured by sampling and by quadrature"

    def check(self, batch_size: int, normalize: str) -> None:
        """Any number of samples will do."""

    def setup(
        self, policy: FixedRatios, objective: Any, penalised: bool, num_iterations: int, seed: int, normalize: str = "none"
    ) -> None:
        """Take the gate from the objective."""
        self.gate = objective.keywords["gate"]
        self._truth: tuple[Any, dict[str, float]] = (None, {})

    def _true_moments(self, ratio: Gaussian | Pareto) -> dict[str, float]:
        """``truth``, computed again only when the gate's sharpness has moved."""
        present = getattr(self.gate, "sharpness", 0.0)
        if self._truth[0] != present:
            self._truth = (present, truth(self.gate, ratio))
        return self._truth[1]

    def __call__(self, policy: FixedRatios, batch: Batch, kl_coef: float) -> tuple[dict[str, float], Moved]:
        w = weight(self.gate, batch.action, batch.advantage)
        product = w * batch.advantage * batch.observation
        metrics = self._true_moments(policy.ratio) | {
            "ratio/abs_log_max_learning": batch.action.abs().max().item(),
            "bandit/num_samples": float(len(w)),
            "bandit/weight_mean": w.mean().item(),
            "bandit/weight_var": w.var().item(),
            "bandit/gradient_var": product.var().item(),
        }
        return metrics, Moved.stack([policy.moved(batch)])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None


def weight_moment(gate: Gate, ratio: Gaussian | Pareto, power: int, sign: float) -> float:
    """E w^power under the law of the ratio by quadrature, for advantages of that sign; inf where it diverges."""
    import torch

    def function(d: Array) -> Array:
        log_ratio = torch.from_numpy(d)
        w: Array = weight(gate, log_ratio, torch.full_like(log_ratio, sign)).numpy() ** power
        return w

    with np.errstate(over="ignore", invalid="ignore"):  # an infinite square is an answer
        return ratio.expectation(function)


def truth(gate: Gate, ratio: Gaussian | Pareto) -> dict[str, float]:
    """E w, Var w and Var(w A s) under the law of the ratio, by quadrature; inf where a second moment diverges."""
    probability = {1.0: P_POSITIVE, -1.0: 1 - P_POSITIVE}
    first = {sign: weight_moment(gate, ratio, 1, sign) for sign in probability}
    mean = sum(p * first[sign] for sign, p in probability.items())
    square = sum(p * weight_moment(gate, ratio, 2, sign) for sign, p in probability.items())
    signed = sum(p * sign * first[sign] for sign, p in probability.items())
    return {
        "bandit/weight_mean_true": mean,
        "bandit/weight_var_true": max(square - mean**2, 0.0),
        "bandit/gradient_var_true": SCORE_SQUARE * square - (SCORE_MEAN * signed) ** 2,
    }
