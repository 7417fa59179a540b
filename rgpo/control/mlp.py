"""Architecture of the actor and the critic; imports nothing heavy, so that a configuration can be checked without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from rgpo.core.ranges import NOT_NEGATIVE, accept, check_fields, one_of
from rgpo.errors import require

MOST_WEIGHTS = 1_000_000_000  # between hidden layers
LOG_STD = accept(lambda x: -20 <= x <= 20, "must lie in [-20, 20].")


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Layers and initialization of both networks; conf/policy/mlp.yaml has those of published PPO."""

    hidden_sizes: tuple[int, ...]
    activation: str = field(metadata=one_of("tanh", "relu"))
    orthogonal_init: bool  # biases 0, weights orthogonal with gain sqrt 2; False: both U(+-1/sqrt(inputs)), gains ignored
    policy_gain: float = field(metadata=NOT_NEGATIVE)  # of the policy's last layer
    value_gain: float = field(metadata=NOT_NEGATIVE)  # of the critic's last layer
    log_std_init: float = field(metadata=LOG_STD)  # of Gaussian actions, in every dimension

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        check_fields(self, "task.policy")
        ok = len(self.hidden_sizes) > 0 and all(isinstance(h, int) and h > 0 for h in self.hidden_sizes)
        require(ok, "task.policy.hidden_sizes", self.hidden_sizes, "must be a list of positive widths, for example [64,64].")
        weights = sum(a * b for a, b in pairwise((1, *self.hidden_sizes, 1)))
        small = weights <= MOST_WEIGHTS and len(self.hidden_sizes) <= 100
        require(small, "task.policy.hidden_sizes", self.hidden_sizes, f"has over 100 layers or {MOST_WEIGHTS:,} weights.")
