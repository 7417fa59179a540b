"""The contents of policy.json, which describes a trained control policy."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from rgpo.control.spaces import Space


class Moments(TypedDict):
    """(o - mean)/sqrt(variance + epsilon), clipped to +-clip, in float64, then float32."""

    mean: list[float]
    variance: list[float]
    epsilon: float
    clip: float


class Network(TypedDict):
    """mlp: linear layers with an activation in between; cnn: rgpo.control.convolutions; module: a program in network.pt2."""

    kind: NotRequired[str]  # mlp, cnn or module; mlp if it is missing
    shape: NotRequired[list[int]]  # of an observation as input of a cnn or module
    picture: NotRequired[list[int]]  # of a cnn: channels, height, width
    scale: NotRequired[float]  # of a cnn: factor applied to observations
    distribution: str  # categorical over logits, gaussian with a mean and log_std, bernoulli over logits, or a product of these
    observation_size: int
    hidden_sizes: list[int]
    action_size: int  # outputs of the actor, in the order of the action space's factors
    activation: str


class Description(TypedDict):
    """The contents of policy.json."""

    format: int
    env_id: str
    observation_space: Space
    action_space: Space
    action_bounds: NotRequired[str]  # clip, or rescale from [-1, 1]; clip if it is missing
    observation_normalizer: Moments | None
    network: Network
    run: dict[str, object]  # rgpo.learning.export.Facts
