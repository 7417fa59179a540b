"""The interfaces between task, policy, algorithm, update and runner, and the data that they exchange.

    rollout = task.collect(policy)
    batch = policy.make_batch(rollout, *advantage(rollout))
    metrics, shift = update(policy, batch, kl_coef)

Shapes: N samples (steps or tokens) of a batch, n of one forward pass, P parameters, E epochs. Log-probabilities, KL divergences
and entropies are in nats. Nothing here imports torch, so that a configuration can be checked without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from rgpo.core.rollout import Array, Rollout
from rgpo.learning.samples import PolicyOutput, PolicyShift, Samples

if TYPE_CHECKING:
    from torch import Tensor

    from rgpo.learning.loss import GateLoss

State = dict[str, object]  # part of a checkpoint: tensors, numbers, strings, and lists and dicts of them
Metrics = dict[str, float | list[float]]  # one iteration's row; a list has one entry per epoch


class View(Protocol):
    """Inputs of one forward pass; each policy defines its own type."""

    @property
    def num_samples(self) -> int: ...


class Minibatch(NamedTuple):
    """The samples of one gradient step, and this process's share of their forward passes."""

    indices: Tensor  # (n,) int64 into the batch's N samples; those of all processes
    views: Sequence[View]


class Batch(Protocol):
    """The samples of a rollout, divided into forward passes."""

    @property
    def samples(self) -> Samples:
        """All N samples."""
        ...

    @property
    def num_kl(self) -> int:
        """Number of samples with a PolicyOutput.kl_old, over all forward passes and processes."""
        ...

    def minibatches(self) -> Sequence[Minibatch]:
        """The minibatches as split at collection; a single one if updates draw their own."""
        ...

    def at(self, view: View) -> Samples:
        """The samples of one forward pass."""
        ...

    def with_advantage(self, advantage: Tensor) -> Self:
        """The same samples with another advantage (N,)."""
        ...


class Critic(Protocol):
    """A value function that can be fitted separately from the policy: a pure function of a flat parameter vector."""

    @property
    def flat(self) -> Tensor:
        """The parameters (P,), shared with the policy: writing to them changes the policy."""
        ...

    def features(self, batch: Batch) -> Tensor:
        """Inputs (N, D) of the value function."""
        ...

    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """V (n,) of features (n, D) at the parameters flat (P,)."""
        ...


class Policy(Protocol):
    """A trainable policy. It holds neither an optimizer nor settings of one."""

    @property
    def flat(self) -> Tensor | None:
        """All parameters (P,), shared with the policy, if ``forward`` is a pure function of them; None for a torch module."""
        ...

    @property
    def num_actor_parameters(self) -> int:
        """Number of leading entries of the flattened ``parameters`` that actions depend on; the critic's own follow."""
        ...

    @property
    def critic(self) -> Critic | None: ...

    def parameters(self) -> Sequence[Tensor]:
        """All trained parameters, the actor's first."""
        ...

    def forward(
        self, view: View, *, flat: Tensor | None = None, kl: bool = False, entropy: bool = True, value: bool = True
    ) -> PolicyOutput:
        """Evaluate the policy at a view, with the parameters flat (P,) in place of its own if given; flags select the outputs."""
        ...

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> Batch:
        """The samples of a rollout; advantage and value_target are (T, E)."""
        ...

    def subset(self, batch: Batch, index: Array) -> Batch:
        """The samples at index (b,), such as one of a rollout's ``groups``, as a batch of one minibatch."""
        ...

    def measure_shift(self, batch: Batch) -> PolicyShift: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Requirements(NamedTuple):
    """Requirements of an algorithm that a task must meet."""

    gamma: float  # discount
    critic: bool  # whether values are trained
    num_minibatches: int  # into which a task splits the samples at collection, if it does
    groups: bool = False  # whether completions of one prompt are compared
    reference: str = ""  # the key that needs a reference policy; "" if none does
    reward_kl_coef: float = 0.0  # of KL(policy || reference) in the reward
    whole_parameters: bool = False  # whether each process must hold all parameters
    compiled: bool = False  # whether compiled updates were requested
    exact_kl: bool = False  # whether its loss reads the exact KL(old || new) of every sample
    pairs: bool = False  # whether it learns from stored pairs of answers, the chosen one first


class Update(Protocol):
    """Optimizes a loss; owns the optimizer and its knobs."""

    @property
    def trust_region(self) -> bool:
        """True if the update bounds the KL divergence by itself, so that a penalty would be ignored."""
        ...

    @property
    def num_minibatches(self) -> int: ...

    @property
    def note(self) -> str:
        """A clause on compilation, for the banner."""
        ...

    def validate(self, batch_size: int, normalize: str) -> None:
        """Raises: ConfigError if the minibatches do not divide the batch, or are too small to standardize over."""
        ...

    def setup(self, policy: Policy, loss: GateLoss, normalize: str, num_iterations: int, seed: int) -> None:
        """Create the optimizer of a loss; normalize: what advantages are standardized over (minibatch, batch or none)."""
        ...

    def __call__(self, policy: Policy, batch: Batch, kl_coef: float) -> tuple[Metrics, PolicyShift]:
        """Learn from one batch; returns metrics, and the shift after each epoch, stacked.

        Raises: NonFiniteError if a loss or a gradient is NaN or infinite.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Algorithm(Protocol):
    """An algorithm that learns from rollouts: ``rgpo.learning.algorithm.GateAlgorithm``, or any class with these methods."""

    @property
    def requirements(self) -> Requirements: ...

    @property
    def note(self) -> str:
        """One clause for the banner about how updates are computed; known after ``setup``."""
        ...

    def describe(self) -> dict[str, str]:
        """Its parts by name, for the banner, ``plan=true`` and provenance.json; parts that do nothing are left out."""
        ...

    def validate(self, batch_size: int) -> None:
        """Raises: ConfigError if it cannot learn from rollouts of batch_size samples."""
        ...

    def setup(self, policy: Policy, num_iterations: int, seed: int) -> None: ...

    def learn(self, policy: Policy, rollout: Rollout, measure_variance: bool) -> Metrics:
        """Learn from one rollout.

        Raises: NonFiniteError if a loss, gradient or KL is NaN or infinite.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Task(Protocol):
    """A source of rollouts: everything that the runner calls."""

    @property
    def memory_advice(self) -> str:
        """The remedy shown when memory runs out."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples (control) or completions (language) of a rollout."""
        ...

    def check(self) -> None:
        """Raises: ConfigError if something outside the configuration is missing: packages, files, environments."""
        ...

    def validate(self, requirements: Requirements) -> None:
        """Raises: ConfigError for an algorithm whose requirements this task cannot meet."""
        ...

    def plan_iterations(self, total_env_steps: int) -> int: ...

    def setup(self, seed: int, requirements: Requirements) -> None: ...

    def make_policy(self, seed: int) -> Policy: ...

    def collect(self, policy: Policy) -> Rollout:
        """Raises: NonFiniteError if a reward or an observation is NaN or infinite."""
        ...

    def evaluate(self, policy: Policy) -> dict[str, float]: ...

    def headline(self, metrics: Mapping[str, float | list[float]]) -> str:
        """The task's part of a progress line."""
        ...

    def summary(self, metrics: Mapping[str, float | list[float]]) -> list[str]:
        """Lines printed at the end of a run."""
        ...

    def take_samples(self) -> Iterable[Mapping[str, object]]:
        """Rows of samples.parquet since the last call."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...
