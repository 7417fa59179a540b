"""Architecture of the actor and the critic; imports nothing heavy, so that a bad value is refused at once."""

from __future__ import annotations

from dataclasses import dataclass

from rgpo.errors import require

ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Architecture and initial values; the defaults are those of the published PPO (orthogonal, gains sqrt 2, .01, 1)."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    orthogonal_init: bool = (
        True  # False draws weights and biases as nn.Linear does, U(+-1/sqrt(inputs)); the gains are then unused
    )
    policy_gain: float = 0.01  # of the policy's last layer
    value_gain: float = 1.0  # of the critic's last layer
    log_std_init: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))
        require(self.activation in ACTIVATIONS, "task.policy.activation", self.activation, "choose tanh or relu.")
        ok = len(self.hidden_sizes) > 0 and all(isinstance(h, int) and h > 0 for h in self.hidden_sizes)
        require(ok, "task.policy.hidden_sizes", self.hidden_sizes, "needs positive layer widths, for example [64,64].")
