"""The network of ``NatureCNN``."""

from __future__ import annotations

import math

from torch import Tensor, nn


class Convolutions(nn.Module):
    """Three convolutions and a linear layer, followed by one linear layer for the outputs (n, O) and one for the value (n,)."""

    def __init__(
        self,
        shape: tuple[int, ...],
        sizes: tuple[int, int, int],
        output_size: int,
        *,
        hidden_size: int,
        policy_gain: float,
        value_gain: float,
        scale: float,
    ) -> None:
        super().__init__()
        channels, height, width = sizes
        self.shape, self.sizes = shape, sizes
        self.scale = scale
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.trunk = nn.Sequential(
            *(nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * height * width, hidden_size), nn.ReLU()),
        )
        self.actor = nn.Linear(hidden_size, output_size)
        self.critic = nn.Linear(hidden_size, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                gain = policy_gain if layer is self.actor else value_gain if layer is self.critic else math.sqrt(2)
                nn.init.orthogonal_(layer.weight, gain)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (n, O) and values (n,) of observations (n, *shape)."""
        x = self._channels_first(observation) * self.scale
        hidden = self.trunk(x.reshape(-1, *self.sizes))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)

    def _channels_first(self, x: Tensor) -> Tensor:
        if len(self.shape) > 2 and self.shape[-3] > self.shape[-1]:
            return x.movedim(-1, -3)
        return x
