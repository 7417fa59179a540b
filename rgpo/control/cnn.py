"""Architectures for pixels, and users' own; imports nothing heavy, so that a configuration can be checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rgpo.control.late import Late
from rgpo.control.mlp import LOG_STD
from rgpo.core.ranges import NOT_NEGATIVE, check_fields, count
from rgpo.errors import ConfigError, blamed, described, require

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_SIDE = 36  # pixels; smaller pictures leave no input for the last convolution


@dataclass(frozen=True, kw_only=True)
class NatureCNN:
    """The convolutions of Mnih et al. 2015 (Nature 518), shared by actor and critic, as in CleanRL's ppo_atari.py."""

    hidden_size: int = field(metadata=count(100_000))  # of the layer after the convolutions
    policy_gain: float = field(metadata=NOT_NEGATIVE)  # of the policy's last layer; all others have sqrt 2
    value_gain: float = field(metadata=NOT_NEGATIVE)  # of the critic's last layer
    log_std_init: float = field(metadata=LOG_STD)  # of Gaussian actions, in every dimension

    def __post_init__(self) -> None:
        check_fields(self, "task.policy")

    def make(self, shape: Sequence[int], pixels: bool, output_size: int) -> nn.Module:
        """The network for observations of a shape; pixels: they are bytes, which are divided by 255.

        Raises: ConfigError for observations that are not pictures, or too small.
        """
        from rgpo.control.convolutions import Convolutions

        try:
            channels, height, width = picture(shape)
        except ValueError as error:
            remedy = "use policy@task.policy=mlp"
            raise ConfigError(f"task.policy: observations of shape {tuple(shape)} are no pictures; {remedy}.") from error
        remedy = f"enlarge them with gymnasium.wrappers.ResizeObservation to at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
        if min(height, width) < SMALLEST_SIDE:
            raise ConfigError(f"task.policy: pictures of {height} x {width} are too small for the convolutions; {remedy}.")
        return Convolutions(
            tuple(shape),
            (channels, height, width),
            output_size,
            hidden_size=self.hidden_size,
            policy_gain=self.policy_gain,
            value_gain=self.value_gain,
            scale=1 / 255 if pixels else 1.0,
        )


def picture(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width of a picture (H, W), (C, H, W) or (H, W, C), or of a stack (S, ...) of the last two kinds.

    The channel axis is the shorter one of the first and the last.

    Raises: ValueError for another number of axes.
    """
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    if len(shape) == 4:
        channels, height, width = picture(shape[1:])
        return shape[0] * channels, height, width
    first, middle, last = shape
    return (first, middle, last) if first <= last else (last, first, middle)


class OwnNetwork(Late):
    """A user's torch.nn.Module: observation (n, *shape) float32 -> outputs (n, output_size) and values (n,) or (n, 1).

    Its constructor may take observation_shape and output_size; pixels arrive as floats from 0 to 255. It runs in eval mode.
    """

    base = ("torch.nn", "Module")
    provided = frozenset({"observation_shape", "output_size"})
    log_std_init = 0.0

    def make(self, shape: Sequence[int], pixels: bool, output_size: int) -> nn.Module:
        """The network for observations of a shape.

        Raises: ConfigError if it cannot be made, or does not return what it must (see ``_check``).
        """
        import inspect

        known = {"observation_shape": tuple(shape), "output_size": output_size}
        parameters = inspect.signature(self.target).parameters
        takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        given = {key: value for key, value in known.items() if takes_all or key in parameters}
        with blamed(lambda error: ConfigError(f"task.policy: {self!r} cannot be made ({described(error)}).")):
            module: nn.Module = self.target(**given, **self.keywords).float()
        _check(module.eval(), self, shape, output_size)
        return module


def _check(module: nn.Module, network: OwnNetwork, shape: Sequence[int], output_size: int) -> None:
    """Raises: ConfigError unless the module maps each observation alone, without noise, to O finite, trainable outputs and V."""
    import torch

    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    about = f"task.policy: {network!r} raised on observations (3, {_list(shape)})"
    with blamed(lambda error: ConfigError(f"{about} ({described(error)}).")):
        returned, again, alone = module(x.clone()), module(x.clone()), module(x[:1].clone())
    found = _shapes(returned)
    if found not in ([(3, output_size), (3,)], [(3, output_size), (3, 1)]):
        wanted = f"outputs (n, {output_size}) and values (n,)"
        got = " and ".join(map(str, found)) if isinstance(returned, tuple | list) else type(returned).__name__
        require(False, "task.policy", repr(network), f"must return {wanted}, not {got} for n = 3.")
    output = returned[0]
    sentences = (
        (
            all(part.dtype in (torch.float32, torch.float64) for part in returned),
            "its outputs and values must be floating-point numbers of 32 or 64 bits.",
        ),
        (all(torch.isfinite(part).all() for part in returned), "it returns NaN or infinite numbers at its initial parameters."),
        (output.requires_grad, "its outputs depend on no parameter that requires a gradient, so there is nothing to train."),
        (
            all(torch.equal(one, other) for one, other in zip(returned, again, strict=True)),
            "it returns something else when it is called again; leave out noise and state in eval mode.",
        ),
        (
            all(_close(one[:1], other) for one, other in zip(returned, alone, strict=True)),
            "what it returns for an observation depends on the others in the batch; treat each one alone.",
        ),
    )
    for holds, remedy in sentences:
        require(bool(holds), "task.policy", repr(network), remedy)


def _close(one: Tensor, other: Tensor) -> bool:
    """True for numbers that are equal up to rounding."""
    return bool(((one - other).abs() <= 1e-3 * (1 + one.abs())).all())


def _shapes(returned: object) -> list[tuple[int, ...]]:
    import torch

    parts = list(returned) if isinstance(returned, tuple | list) else [returned]
    return [tuple(x.shape) if isinstance(x, torch.Tensor) else () for x in parts]


def _list(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
