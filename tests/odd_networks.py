"""Networks of a user's own, sound ones and ones that are refused, and an environment of pictures."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn


class Pictures(gymnasium.Env):
    """The action that earns 1 is the bright half of a picture."""

    observation_space: Any = spaces.Box(0, 255, (40, 44, 3), np.uint8)
    action_space: Any = spaces.Discrete(2)

    def __init__(self, side: int = 40) -> None:
        self.observation_space = spaces.Box(0, 255, (side, 44, 3), np.uint8)

    def observe(self) -> Any:
        self.left = int(self.np_random.integers(2))
        seen = np.zeros(self.observation_space.shape, np.uint8)
        seen[:, 22 * self.left :][:, :22] = 200
        return seen

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        reward, self.time = float(action == self.left), self.time + 1
        return self.observe(), reward, self.time == 8, False, {}


class Net(nn.Module):
    """Of the user's own: a shared layer, two heads."""

    def __init__(self, observation_shape: tuple[int, ...], output_size: int, width: int = 8) -> None:
        super().__init__()
        self.body, self.actor, self.critic = (
            nn.Linear(observation_shape[0], width),
            nn.Linear(width, output_size),
            nn.Linear(width, 1),
        )
        self.dropout = nn.Dropout(0.5)  # off: networks are used in eval mode

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.dropout(torch.tanh(self.body(x)))
        return self.actor(hidden), self.critic(hidden)


class Alone(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)[0]


class Narrow(Net):
    def __init__(self, output_size: int) -> None:
        super().__init__((4,), output_size - 1)


class Raises(Net):
    def forward(self, x: torch.Tensor) -> Any:
        raise RuntimeError("no such layer")


class Leaves(Net):
    def forward(self, x: torch.Tensor) -> Any:
        raise SystemExit(3)


class Keywords(Net):
    def __init__(self, **given: Any) -> None:
        super().__init__(**given)


class Frozen(Net):
    """A body that is not trained, as a pretrained encoder is not."""

    def __init__(self, observation_shape: tuple[int, ...], output_size: int, width: int = 8) -> None:
        super().__init__(observation_shape, output_size, width)
        self.body.requires_grad_(False)


class Std(Net):
    """With a parameter that has the name of ours."""

    def __init__(self, observation_shape: tuple[int, ...], output_size: int) -> None:
        super().__init__(observation_shape, output_size)
        self.log_std = nn.Parameter(torch.full((8,), 2.0))

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.tanh(self.body(x)) * self.log_std
        return self.actor(hidden), self.critic(hidden)


class Untrained(Net):
    def __init__(self, observation_shape: tuple[int, ...], output_size: int) -> None:
        super().__init__(observation_shape, output_size)
        self.requires_grad_(False)


class Broken(Net):
    def __init__(self, output_size: int) -> None:
        raise FileNotFoundError("weights.pt")


class NaN(Net):
    def forward(self, x: torch.Tensor) -> Any:
        output, value = super().forward(x)
        return output * torch.nan, value


class Noisy(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(torch.dropout(x, 0.5, train=True))


class Mixing(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x - x.mean(0))


class Whole(Net):
    def forward(self, x: torch.Tensor) -> Any:
        output, value = super().forward(x)
        return output.long(), value


class NoisyValue(Net):
    def forward(self, x: torch.Tensor) -> Any:
        output, value = super().forward(x)
        return output, value + torch.randn_like(value)


class Half(Net):
    def forward(self, x: torch.Tensor) -> Any:
        output, value = super().forward(x)
        return output.half(), value


class Exits(Net):
    def __init__(self) -> None:
        raise SystemExit(4)


class InPlace(Net):
    def forward(self, x: torch.Tensor) -> Any:
        x /= 2.0
        return super().forward(x)


class OutOfPlace(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x / 2.0)


class Named(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return dict(zip(("a", "b"), super().forward(x), strict=True))


def function(observation_shape: Any, output_size: int) -> None:
    """No class."""


gymnasium.register("Pictures-v0", Pictures)
