"""Architecture of the actor and the critic; imports nothing heavy, so that a configuration is checked without torch."""

from __future__ import annotations

from dataclasses import dataclass

from rgpo.errors import require


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Layers and initial values of both networks; conf/task/_control.yaml has those of the published PPO."""

    hidden_sizes: tuple[int, ...]
    activation: str
    orthogonal_init: bool  # biases 0, weights orthogonal with gain sqrt 2; False: both U(+-1/sqrt(inputs)), the gains are unused
    policy_gain: float  # of the policy's last layer
    value_gain: float  # of the critic's last layer
    log_std_init: float  # of Gaussian actions, in every dimension

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        require(self.activation in ("tanh", "relu"), "task.policy.activation", self.activation, "unknown; choose tanh or relu.")
        ok = len(self.hidden_sizes) > 0 and all(isinstance(h, int) and h > 0 for h in self.hidden_sizes)
        require(ok, "task.policy.hidden_sizes", self.hidden_sizes, "must be a list of positive widths, for example [64,64].")
