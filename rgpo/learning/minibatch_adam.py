"""Minibatch Adam over a batch: all its epochs are one call, as it is or compiled.

A step is forward, backward, gradient clip and Adam on one flat vector, written as a pure function; compiling it changes
its speed and nothing else. Compiled code is cached on disk by torch, so a second run of the same shape starts at once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from rgpo.core.rollout import Batch
from rgpo.errors import ConfigError, first_line
from rgpo.learning.adam import AdamState, adam, bias_corrections, clip_by_norm
from rgpo.paths import made_cache_dir

LossFunction = Callable[[Tensor, Batch, Tensor], tuple[Tensor, tuple[Tensor, ...]]]
Climb = Callable[..., tuple[AdamState, Tensor, list[Tensor]]]
Measure = Callable[[Tensor, Batch], tuple[Tensor, ...]]  # of parameters (P,) and the whole batch
ENOUGH_STEPS = 15_000  # gradient steps that earn back a first compilation, 13 s here, and half as much again
MOST_GRAPHS = 8  # of one function that torch keeps in a process; it refuses a ninth
_COMPILED_RUNS = itertools.count()


def climb(
    state: AdamState,
    batch: Batch,
    order: Tensor,
    corrections: Tensor,
    kl_coef: Tensor,
    *,
    fold: Callable[..., Any],
    loss_function: LossFunction,
    measure: Measure,
    max_grad_norm: float | None,
    adam_eps: float,
) -> tuple[AdamState, Tensor, list[Tensor]]:
    """One Adam step for each of M minibatches in each of E epochs: samples order (E, M, b) of batch (N, ...).

    corrections (E, M, 2) are those of the steps; fold goes through epochs and minibatches. Returns the last state,
    statistics (E, M, 5) as STATISTICS, and the measures of what each epoch left, each (E, ...).
    """

    def step(carry: tuple[Tensor, ...], minibatch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor]]:
        (index, row), state = minibatch, AdamState(*carry)
        gradient_of = torch.func.grad_and_value(loss_function, has_aux=True)
        gradient, (_, parts) = gradient_of(state.parameters, batch.select(index), kl_coef)
        gradient, norm = clip_by_norm(gradient, max_grad_norm)
        clipped = norm * 0 if max_grad_norm is None else (norm > max_grad_norm).to(norm.dtype)
        return tuple(adam(state, gradient, row, adam_eps)), (torch.stack([*parts, norm, clipped]),)

    def epoch(carry: tuple[Tensor, ...], minibatches: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        carry, (statistics,) = fold(step, carry, minibatches)
        return carry, (statistics, *measure(carry[0], batch))

    last, (statistics, *measures) = fold(epoch, tuple(state), (order, corrections))
    return AdamState(*last), statistics, measures


def loop(step: Callable[..., Any], carry: Any, columns: tuple[Tensor, ...]) -> tuple[Any, tuple[Tensor, ...]]:
    """What torch's ``scan`` is to compiled code: carry, row = step(carry, x) for x in columns; the last carry, all rows."""
    rows = []
    for x in zip(*columns, strict=True):
        carry, row = step(carry, x)
        rows.append(row)
    return carry, tuple(map(torch.stack, zip(*rows, strict=True)))


def nothing(parameters: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """The measures of a climb whose epochs are not looked at."""
    return ()


def resolve_compile(choice: bool | str, num_gradient_steps: int) -> tuple[bool, str]:
    """Whether to compile, and why: `auto` compiles a run that is long enough to pay for it, given a C++ compiler."""
    if choice is False:
        return False, "not compiled (update.compile=false)"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as inductor chooses it
    if shutil.which(compiler) is None:
        return False, f"not compiled: no C++ compiler {compiler} found, install it or set CXX for several times the speed"
    if choice == "auto" and num_gradient_steps < ENOUGH_STEPS:
        return False, f"not compiled: {num_gradient_steps:,} gradient steps are too few to pay for it"
    try:
        made_cache_dir()
    except ConfigError as error:
        if choice == "auto":
            return False, f"not compiled: {error}"
        raise
    return True, "compiled"


def _compile(function: Climb) -> Climb:
    """Compiled; runs of one process that differ in no constant of the graph share it, a sweep's seeds for example."""
    if next(_COMPILED_RUNS) % MOST_GRAPHS == 0:
        torch.compiler.reset()
    return torch.compile(partial(function, fold=scan), fullgraph=True, dynamic=False, options=options())


@cache
def options() -> dict[str, Any]:
    """inductor's; one object, because runs share a graph only if they share its passes."""
    from rgpo.learning.accel.onednn_pass import Products  # inductor, which makes its folder when it is imported

    return {
        "cpp_wrapper": True,  # kernels are called from C++
        "pattern_matcher": False,  # or a product and its bias become one call that first copies the bias to every row
        "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.scan": torch.__version__},  # or a scan is not kept on disk
        "cpp.vec_isa_ok": True,  # the flags of the processor are believed, not tried out at every start
        "post_grad_custom_post_pass": Products(),
    }


class MinibatchAdam:
    """Adam on loss_function over shuffled minibatches, with its own generator; every sample once an epoch.

    parameters (P,) are the policy's own: they are read when a climb starts and overwritten when it ends.
    """

    def __init__(
        self,
        parameters: Tensor,
        loss_function: LossFunction,
        measure: Measure = nothing,
        *,
        num_minibatches: int,
        max_grad_norm: float | None,
        adam_eps: float,
        compile: bool | str,
        num_steps: int,
        seed: int,
    ) -> None:
        compiled, self.note = resolve_compile(compile, num_steps)
        self._must_compile = compile is True
        self.parameters = parameters
        self.state = AdamState.start(parameters)
        self.num_steps = 0  # taken so far
        self.rng = np.random.default_rng(seed)
        self.num_minibatches = num_minibatches
        self._function: Climb = partial(
            climb, loss_function=loss_function, measure=measure, max_grad_norm=max_grad_norm, adam_eps=adam_eps
        )
        self._compiled = _compile(self._function) if compiled else None

    @property
    def compiled(self) -> bool:
        """Whether steps are compiled, which they no longer are once a compiler has failed."""
        return self._compiled is not None

    def climb(self, batch: Batch, lr: float, kl_coef: float, num_epochs: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """num_epochs passes over batch (N, ...) from the policy's parameters; statistics (num_epochs, num_minibatches, 5)."""
        shape = num_epochs, self.num_minibatches
        state = self.state._replace(parameters=self.parameters.clone())
        order = np.stack([self.rng.permutation(len(batch.advantage)) for _ in range(num_epochs)])
        corrections = bias_corrections(lr, self.num_steps, num_epochs * self.num_minibatches).to(self.parameters.dtype)
        columns = torch.from_numpy(order).view(*shape, -1), corrections.view(*shape, 2)
        self.state, statistics, measures = self._climb(state, batch, *columns, torch.tensor(kl_coef))
        self.parameters.copy_(self.state.parameters)
        self.num_steps += num_epochs * self.num_minibatches
        return statistics, tuple(measures)

    def _climb(self, *arguments: Any) -> tuple[AdamState, Tensor, list[Tensor]]:
        """``climb``, compiled if it can be."""
        if self._compiled is not None:
            from torch._inductor.exc import CppCompileError, InductorError

            try:
                return self._compiled(*arguments)
            except (CppCompileError, InductorError) as error:
                why = f"update.compile: the C++ compiler failed ({first_line(error)})"
                if self._must_compile:
                    raise ConfigError(f"{why}; install g++ and Python's headers, or set update.compile=false.") from error
                warnings.warn(f"{why}; the run goes on uncompiled.", stacklevel=3)
                self._compiled = None
        return self._function(*arguments, fold=loop)

    def state_dict(self) -> dict[str, Any]:
        rng = self.rng.bit_generator.state
        return {"adam": list(self.state), "num_steps": self.num_steps, "rng": rng, "compiled": self.compiled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; the note says if it was written by the other arithmetic."""
        self.state = AdamState(*state["adam"])
        self.num_steps = state["num_steps"]
        self.rng.bit_generator.state = state["rng"]
        if state["compiled"] != self.compiled:
            was = f"the checkpoint has compiled={state['compiled']}"
            self.note += f"; {was}, so the resumed run is equal to rounding, not bit for bit"
