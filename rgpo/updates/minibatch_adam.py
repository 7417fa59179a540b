"""Minibatch Adam over a batch: an epoch is one call, as it is or compiled.

A step is forward, backward, gradient clip and Adam on one flat vector, written as a pure function; compiling it changes
its speed and nothing else. Compiled code is cached on disk by torch, so a second run of the same shape starts at once.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from rgpo.batch import Batch
from rgpo.updates.adam import AdamState, adam, bias_corrections, clip_by_norm
from rgpo.updates.products import Products

LossFunction = Callable[[Tensor, Batch, Tensor], tuple[Tensor, tuple[Tensor, ...]]]
ENOUGH_STEPS = 15_000  # gradient steps that earn back a first compilation, 9 s here, twice over
MOST_GRAPHS = 8  # of one function that torch keeps in a process; it refuses a ninth
OPTIONS: dict[str, Any] = {
    "cpp_wrapper": True,  # kernels are called from C++
    "cpp.use_decompose_tanh": True,  # 2/(1 + exp(-2x)) - 1, to 2e-7: the library's tanh is an eighth of a step
    "pattern_matcher": False,  # or a product and its bias become one call that first copies the bias to every row
    "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.scan": torch.__version__},  # or a scan is not kept on disk
    "post_grad_custom_post_pass": Products(),
    "cpp.vec_isa_ok": True,  # the flags of the processor are believed, not tried out at every start
}
_COMPILED_RUNS = itertools.count()


def epoch(
    state: AdamState,
    batch: Batch,
    order: Tensor,
    corrections: Tensor,
    kl_coef: Tensor,
    *,
    fold: Callable[..., tuple[tuple[Tensor, ...], Tensor]],
    loss_function: LossFunction,
    max_grad_norm: float | None,
    adam_eps: float,
) -> tuple[AdamState, Tensor]:
    """One Adam step for each of the M minibatches, samples order (M, b) of batch (N, ...), with its corrections (M, 2).

    fold goes through them. Returns the last state and statistics (M, 5) as STATISTICS.
    """

    def step(carry: tuple[Tensor, ...], minibatch: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        (index, row), state = minibatch, AdamState(*carry)
        gradient_of = torch.func.grad_and_value(loss_function, has_aux=True)
        gradient, (_, parts) = gradient_of(state.parameters, batch.select(index), kl_coef)
        gradient, norm = clip_by_norm(gradient, max_grad_norm)
        clipped = norm * 0 if max_grad_norm is None else (norm > max_grad_norm).to(norm.dtype)
        return tuple(adam(state, gradient, row, adam_eps)), torch.stack([*parts, norm, clipped])

    last, statistics = fold(step, tuple(state), (order, corrections))
    return AdamState(*last), statistics


def loop(step: Callable[..., Any], carry: Any, columns: tuple[Tensor, ...]) -> tuple[Any, Tensor]:
    """What torch's ``scan`` is to compiled code: carry, row = step(carry, x) for x in columns; the last carry, all rows."""
    rows = []
    for x in zip(*columns, strict=True):
        carry, row = step(carry, x)
        rows.append(row)
    return carry, torch.stack(rows)


def resolve_compile(choice: bool | str, num_gradient_steps: int) -> tuple[bool, str]:
    """Whether to compile, and why: `auto` compiles a run that is long enough to pay for it, given a C++ compiler."""
    compiler = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if choice is False:
        return False, "not compiled (update.compile=false)"
    if compiler is None:
        return False, "not compiled: no C++ compiler found, install g++ for several times the speed"
    if choice == "auto" and num_gradient_steps < ENOUGH_STEPS:
        return False, f"not compiled: {num_gradient_steps:,} gradient steps are too few to pay for it"
    return True, "compiled"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled; runs of one process that differ in no constant of the graph share it, a sweep's seeds for example."""
    if next(_COMPILED_RUNS) % MOST_GRAPHS == 0:
        torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False, options=OPTIONS)


class MinibatchAdam:
    """Adam on loss_function over shuffled minibatches, with its own generator; every sample once an epoch.

    parameters (P,) are the policy's own: they are read when an epoch starts and overwritten when it ends.
    """

    def __init__(
        self,
        parameters: Tensor,
        loss_function: LossFunction,
        *,
        num_minibatches: int,
        max_grad_norm: float | None,
        adam_eps: float,
        compile: bool | str,
        num_steps: int,
        seed: int,
    ) -> None:
        self.compiled, self.note = resolve_compile(compile, num_steps)
        self.parameters = parameters
        self.state = AdamState.start(parameters)
        self.num_steps = 0  # taken so far
        self.rng = np.random.default_rng(seed)
        self.num_minibatches = num_minibatches
        fold = scan if self.compiled else loop
        function: Callable[..., tuple[AdamState, Tensor]] = partial(
            epoch, fold=fold, loss_function=loss_function, max_grad_norm=max_grad_norm, adam_eps=adam_eps
        )
        self._epoch = compiled(function) if self.compiled else function

    def epoch(self, batch: Batch, lr: float, kl_coef: float) -> Tensor:
        """One pass over batch (N, ...) from the policy's parameters; statistics (num_minibatches, 5)."""
        self.state = self.state._replace(parameters=self.parameters.clone())
        order = torch.from_numpy(self.rng.permutation(len(batch.advantage))).view(self.num_minibatches, -1)
        corrections = bias_corrections(lr, self.num_steps, self.num_minibatches).to(self.parameters.dtype)
        self.state, statistics = self._epoch(self.state, batch, order, corrections, torch.tensor(kl_coef))
        self.parameters.copy_(self.state.parameters)
        self.num_steps += self.num_minibatches
        return statistics

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
