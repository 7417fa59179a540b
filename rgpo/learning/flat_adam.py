"""Minibatch Adam on one flat parameter vector: all epochs of an iteration are one call, eager or compiled.

A step is forward, backward, gradient clip and Adam, written as a pure function; compiling it changes only its speed and the
rounding. Compiled code is cached on disk, so later runs with the same shapes start at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from rgpo.core.ranges import MANY
from rgpo.errors import ConfigError
from rgpo.learning.accel import compiled_adam
from rgpo.learning.adam import AdamState, Epochs, adam, bias_corrections, clip_by_norm
from rgpo.learning.culprits import NonFiniteStep
from rgpo.learning.loss import LossParts
from rgpo.learning.samples import Samples
from rgpo.learning.types import State, View

Data = tuple[object, ...]  # nested tuples and NamedTuples of tensors (N, ...)
T = TypeVar("T")


class LossFunction(Protocol):
    """Loss and its parts at the parameters flat (P,) on a minibatch of the data."""

    def __call__(self, flat: Tensor, data: Data, kl_coef: Tensor) -> tuple[Tensor, LossParts]: ...


Measure = Callable[[Tensor, Data], tuple[Tensor, ...]]  # takes the parameters (P,) and all data


class Statistics(NamedTuple):
    """Numbers of one gradient step, in the order of the statistics' last axis."""

    loss_policy: Tensor
    loss_value: Tensor
    log_ratio_max: Tensor  # nats
    num_outside: Tensor  # samples outside the clip range
    num_samples: Tensor
    grad_norm: Tensor  # before clipping
    grad_clipped: Tensor  # 1 if it was clipped, else 0


def select(data: T, index: Tensor) -> T:
    """The rows index (b,) of every tensor in a tree of tuples; None stays None."""
    if data is None:
        return data
    if isinstance(data, Tensor):
        return cast(T, data.index_select(0, index))  # takes a third of the time of data[index]
    assert isinstance(data, tuple)
    parts = [select(x, index) for x in data]
    return cast(T, type(data)(*parts) if hasattr(data, "_fields") else tuple(parts))


def gradient_of(loss_function: LossFunction, parameters: Tensor, data: Data, kl_coef: Tensor) -> tuple[Tensor, LossParts]:
    """The gradient (P,) of a loss, and the loss's parts; torch.func only while compiling, since it imports the compiler."""
    if torch.compiler.is_compiling():
        gradient, (_, parts) = torch.func.grad_and_value(loss_function, has_aux=True)(parameters, data, kl_coef)
        return gradient, parts
    with torch.enable_grad():
        leaf = parameters.detach().requires_grad_()
        loss, parts = loss_function(leaf, data, kl_coef)
    if not loss.requires_grad:
        return torch.zeros_like(parameters), parts
    (gradient,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
    return gradient, LossParts(*(part.detach() for part in parts))


def run_epochs(
    state: AdamState,
    data: Data,
    order: Tensor,
    corrections: Tensor,
    kl_coef: Tensor,
    *,
    fold: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]],
    loss_function: LossFunction,
    measure: Measure,
    max_grad_norm: float | None,
    num_apart: int | None = None,
    adam_eps: float,
) -> Epochs:
    """One Adam step for each of M minibatches in each of E epochs: rows order (E, M, b) of data (N, ...).

    corrections (E, M, 2) are the rows of ``bias_corrections``; fold iterates over epochs and minibatches. Returns the final
    state, statistics (E, M, 7) as ``Statistics``, and the measures after each epoch, each (E, ...).
    """

    def step(carry: tuple[Tensor, ...], minibatch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor]]:
        (index, row), state = minibatch, AdamState(*carry)
        gradient, parts = gradient_of(loss_function, state.parameters, select(data, index), kl_coef)
        gradient, norm = clip_by_norm(gradient, max_grad_norm, num_apart)
        clipped = norm * 0 if max_grad_norm is None else (norm > max_grad_norm).to(norm.dtype)
        return tuple(adam(state, gradient, row, adam_eps)), (torch.stack([*parts, norm, clipped]),)

    def epoch(carry: tuple[Tensor, ...], minibatches: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        carry, (statistics,) = fold(step, carry, minibatches)
        return carry, (statistics, *measure(carry[0], data))

    last, (statistics, *measures) = fold(epoch, tuple(state), (order, corrections))
    return AdamState(*last), statistics, measures


def loop(
    step: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]], carry: tuple[Tensor, ...], columns: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """carry, row = step(carry, x) for x in columns; returns the last carry and the stacked rows, as torch's ``scan`` does."""
    rows = []
    for x in zip(*columns, strict=True):
        carry, row = step(carry, x)
        rows.append(row)
    return carry, tuple(map(torch.stack, zip(*rows, strict=True)))


def no_measure(parameters: Tensor, data: Data) -> tuple[Tensor, ...]:
    """Measure nothing after an epoch."""
    return ()


class FlatAdam:
    """Adam on loss_function over shuffled minibatches of equal size, with its own generator.

    Every sample is used once per epoch, except for a random remainder smaller than num_minibatches if these do not divide the
    batch. parameters (P,) is the policy's own vector, read when a call starts and overwritten when it ends; num_apart as in
    ``clip_by_norm``.
    """

    def __init__(
        self,
        parameters: Tensor,
        loss_function: LossFunction,
        measure: Measure = no_measure,
        *,
        num_minibatches: int,
        max_grad_norm: float | None,
        num_apart: int | None = None,
        adam_eps: float,
        compile: bool | str,
        num_steps: int,
        seed: int,
    ) -> None:
        self._choice = compile
        self.parameters = parameters
        self.state = AdamState.start(parameters)
        self.num_steps = 0  # taken so far
        self.rng = np.random.default_rng(seed)
        self.num_minibatches = num_minibatches
        self._function = partial(
            run_epochs,
            loss_function=loss_function,
            measure=measure,
            max_grad_norm=max_grad_norm,
            num_apart=num_apart,
            adam_eps=adam_eps,
        )
        epochs = compiled_adam.CompiledEpochs(self._function, loop)
        compiled, self.note = compiled_adam.resolve(compile, num_steps, epochs)
        self._compiled = epochs if compiled else None

    @property
    def compiled(self) -> bool:
        """True while steps are compiled; False once a compiler has failed."""
        return self._compiled is not None

    def run_epochs(self, data: Data, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Make num_epochs passes over data (N, ...); returns statistics (E, M, 7) as ``Statistics``, and the measures (E, ...).

        Raises: NonFiniteStep if a loss or a gradient is NaN or infinite; the parameters are then unchanged.
        """
        size = _num_rows(data)
        shape = num_epochs, min(self.num_minibatches, size)
        used = size - size % shape[1]
        state = self.state._replace(parameters=self.parameters.clone())
        indices = np.stack([self.rng.permutation(size)[:used] for _ in range(num_epochs)])
        table = bias_corrections(lr, self.num_steps, shape[0] * shape[1]).to(self.parameters.dtype)
        columns = (torch.from_numpy(indices).view(*shape, -1), table.view(*shape, 2))
        order, corrections = (x.to(self.parameters.device) for x in columns)
        inputs = (data, order, corrections, torch.tensor(kl_coef))
        last, statistics, measures = self._run(state, *inputs)
        bad = ~statistics.isfinite().all(-1).flatten()
        if bad.any():
            raise self._non_finite_step(int(bad.nonzero()[0]), state, *inputs)
        self.state = last
        self.parameters.copy_(last.parameters)
        self.num_steps += shape[0] * shape[1]
        return statistics, tuple(measures)

    def _run(self, state: AdamState, data: Data, *columns: Tensor) -> Epochs:
        """Call ``run_epochs``, compiled if possible.

        Raises: ConfigError if update.compile is true and compiling fails; errors of the loss itself come from the eager call.
        """
        for attempt in range(2):
            if self._compiled is None:
                break
            try:
                return self._compiled(state, data, *columns)
            except Exception as error:
                if compiled_adam.was_stopped(error) and not attempt:
                    continue  # by a signal to all processes: finish this iteration first
                results = self._function(state, data, *columns, fold=loop)
                why = compiled_adam.failure(error)
                if self._choice is True:
                    raise ConfigError(f"update.compile=true: {why}, or use auto.") from error
                warnings.warn(f"update.compile=auto: {why}; the run continues uncompiled.", stacklevel=3)
                self._compiled = None
                return results
        return self._function(state, data, *columns, fold=loop)

    def _non_finite_step(
        self, step: int, state: AdamState, data: Data, order: Tensor, corrections: Tensor, kl_coef: Tensor
    ) -> NonFiniteStep:
        """The failing step and its parameters, recomputed from state by repeating the steps before it."""
        order, corrections = order.flatten(0, 1)[None], corrections.flatten(0, 1)[None]
        if step:
            state, _, _ = self._function(state, data, order[:, :step], corrections[:, :step], kl_coef, fold=loop)
        parts = cast("list[tuple[View, Samples]]", [select(data, order[0, step])])
        return NonFiniteStep(f"gradient step {step + 1} of {order.shape[1]}", parts, state.parameters)

    def state_dict(self) -> State:
        rng = self.rng.bit_generator.state
        return {"adam": list(self.state), "num_steps": self.num_steps, "rng": rng, "compiled": self.compiled}

    def load_state_dict(self, state: State) -> None:
        """Restore a state; the note reports if the checkpoint was written with the other setting of compile."""
        self.state = AdamState(*cast(list[Tensor], state["adam"]))
        self.num_steps = cast(int, state["num_steps"])
        self.rng.bit_generator.state = cast(Mapping[str, object], state["rng"])
        if state["compiled"] != self.compiled and self._choice == "auto":  # the run continues as it began
            if self.compiled:
                self._compiled, self.note = None, "not compiled, like the run's checkpoint"
            elif compiled_adam.resolve("auto", MANY, epochs := compiled_adam.CompiledEpochs(self._function, loop))[0]:
                self._compiled, self.note = epochs, "compiled, like the run's checkpoint"
        if state["compiled"] != self.compiled:
            was = f"the checkpoint has compiled={state['compiled']}"
            self.note += f"; {was}, so the resumed run is equal to rounding, not bit for bit"


def _num_rows(data: object) -> int:
    """N, from the first tensor of a tree."""
    while not isinstance(data, Tensor):
        assert isinstance(data, tuple)
        data = data[0]
    return len(data)
