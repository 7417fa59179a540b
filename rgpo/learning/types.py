"""The joints: what task, policy, algorithm, update and runner pass to one another.

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

State = dict[str, object]  # of a checkpoint: tensors, numbers, strings, and lists and dicts of them
Metrics = dict[str, float | list[float]]  # one iteration's row; a list has one entry per epoch


class View(Protocol):
    """Inputs of one forward pass; each policy has a type of its own."""

    @property
    def num_samples(self) -> int: ...


class Minibatch(NamedTuple):
    """The samples of one gradient step, and the forward passes that this process computes of them."""

    indices: Tensor  # (n,) int64, among the batch's N; over all processes
    views: Sequence[View]


class Batch(Protocol):
    """The samples of a rollout, and the forward passes they are computed in."""

    @property
    def samples(self) -> Samples:
        """All N samples."""
        ...

    @property
    def num_kl(self) -> int:
        """Samples at which PolicyOutput.kl_old is computed, over all forward passes and processes."""
        ...

    def minibatches(self) -> Sequence[Minibatch]:
        """As they were split at collection; a single one where updates draw their own."""
        ...

    def at(self, view: View) -> Samples:
        """The samples of one forward pass."""
        ...

    def with_advantage(self, advantage: Tensor) -> Self:
        """The same samples with another advantage (N,)."""
        ...


class Critic(Protocol):
    """A value function that can be fitted apart from the policy: pure in a flat parameter vector."""

    @property
    def flat(self) -> Tensor:
        """(P,) in place: what is written here is what the policy uses."""
        ...

    def features(self, batch: Batch) -> Tensor:
        """(N, D): what the value function reads."""
        ...

    def value(self, flat: Tensor, features: Tensor) -> Tensor:
        """V (n,) of features (n, D) at the parameters flat (P,)."""
        ...


class Policy(Protocol):
    """A trainable policy. It knows no optimizer and no setting of one."""

    @property
    def flat(self) -> Tensor | None:
        """(P,) every parameter in place, where ``forward`` is a pure function of it; None for a torch module."""
        ...

    @property
    def num_actor_parameters(self) -> int:
        """The leading numbers of ``parameters``, flattened, that the action distribution depends on; the critic's follow."""
        ...

    @property
    def critic(self) -> Critic | None: ...

    def parameters(self) -> Sequence[Tensor]:
        """All that is trained, actor first."""
        ...

    def forward(
        self, view: View, *, flat: Tensor | None = None, kl: bool = False, entropy: bool = True, value: bool = True
    ) -> PolicyOutput:
        """The policy at a view, at the parameters flat (P,) instead of its own if given; the flags select what is computed."""
        ...

    def make_batch(self, rollout: Rollout, advantage: Array, value_target: Array) -> Batch:
        """The samples of a rollout; advantage and value_target are (T, E)."""
        ...

    def subset(self, batch: Batch, index: Array) -> Batch:
        """Some samples (of a rollout's ``groups``) as a batch of one minibatch."""
        ...

    def measure_shift(self, batch: Batch) -> PolicyShift: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Requirements(NamedTuple):
    """Needs of an algorithm that a task must serve."""

    gamma: float  # discount
    critic: bool  # whether values are trained
    num_minibatches: int  # into which samples are split at collection, where the task splits them
    groups: bool = False  # whether completions of one prompt are compared
    reference: str = ""  # the key that needs a reference policy; "" if none does
    reward_kl_coef: float = 0.0  # of KL(policy || reference) in the reward
    whole_parameters: bool = False  # whether each process must hold all parameters
    compiled: bool = False  # whether compiled updates were asked for
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
        """Raises: ConfigError if the minibatches do not divide the batch."""
        ...

    def setup(self, policy: Policy, loss: GateLoss, normalize: str, num_iterations: int, seed: int) -> None:
        """Make the optimizer of a loss; normalize: what advantages are standardized over (minibatch, batch or none)."""
        ...

    def __call__(self, policy: Policy, batch: Batch, kl_coef: float) -> tuple[Metrics, PolicyShift]:
        """One iteration's learning: metrics, and the shift after each epoch, stacked.

        Raises: NonFiniteError if a loss or a gradient is NaN or infinite.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Algorithm(Protocol):
    """Learning from rollouts. The gate family is ``rgpo.learning.algorithm.GateAlgorithm``; any class will do."""

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
        """Raises: ConfigError if it cannot learn from rollouts of that many samples."""
        ...

    def setup(self, policy: Policy, num_iterations: int, seed: int) -> None: ...

    def learn(self, policy: Policy, rollout: Rollout, measure_variance: bool) -> Metrics:
        """One iteration's learning.

        Raises: NonFiniteError if a loss, gradient or KL is NaN or infinite.
        """
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class Task(Protocol):
    """A source of rollouts: all that the runner calls."""

    @property
    def memory_advice(self) -> str:
        """The remedy when memory runs out."""
        ...

    @property
    def batch_size(self) -> int:
        """Samples (control) or completions (language) of a rollout."""
        ...

    def check(self) -> None:
        """Raises: ConfigError for what is missing outside the configuration: packages, files, environments."""
        ...

    def validate(self, requirements: Requirements) -> None:
        """Raises: ConfigError for an algorithm that this task cannot serve."""
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
