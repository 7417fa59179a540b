"""The compiled engine of ``rgpo.learning.flat_adam``: up to rounding, it changes only the speed of a run.

It uses private torch APIs, any of which may be missing from a version that has not been tried:

    export           builds a library, which later processes load without the compiler; without it each process traces
    scan             loops over minibatches and epochs inside one graph; without it each gradient step is one graph
    options          settings of inductor; those that it does not know are left out
    oneDNN products  matrix products by ``onednn_pass``; without them inductor calls MKL
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rgpo.errors import ConfigError, first_line
from rgpo.learning.accel import ahead
from rgpo.learning.accel.compiler_cache import DIGESTS, CrashRecord, private_dir, verified
from rgpo.learning.adam import Epochs
from rgpo.learning.alike import num_alike

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]  # carry, row = step(carry, x)
Fold = Callable[[Step, Tensors, Tensors], tuple[Tensors, Tensors]]  # last carry and stacked rows over columns

TRIED = ("2.13", "2.14")  # minor versions of torch with correct results in the tests and docs/torch_versions.md
STEPS_NEW, STEPS_CACHED = 8_000, 1_500  # gradient steps from which compiling, or loading cached code, pays; 1.8 ms CPU saved each
MOST_GRAPHS = 8  # compiled variants of one function that torch keeps in a process; it rejects the ninth

NOT_AHEAD = ("cpp_wrapper", "unsafe_marked_cacheable_functions")  # options for torch.compile only

_traced_runs = itertools.count()


class Engine(NamedTuple):
    """The private APIs that the installed torch provides."""

    scan: Fold | None
    export: Callable[..., Any] | None
    options: dict[str, Any]  # one object per process: runs share a graph only if they share its options
    missing: tuple[str, ...]  # a clause per missing API


def resolve(choice: bool | str, num_gradient_steps: int, epochs: CompiledEpochs | None = None) -> tuple[bool, str]:
    """Decide whether to compile, with a clause for the banner; ``auto`` compiles if it pays off and this torch has been tried.

    epochs: the function, whose code may already be cached.

    Raises: ConfigError if choice is true and the cache folder cannot be written, or can be written by others.
    """
    if choice is False:
        return False, "not compiled (update.compile=false)"
    if choice == "auto" and num_gradient_steps < STEPS_CACHED:
        return False, f"not compiled: {num_gradient_steps:,} gradient steps are too few to pay for it"
    try:
        private_dir()
        cached = epochs is not None and epochs.is_cached
    except ConfigError as error:
        if choice == "auto":
            return False, f"not compiled: {error}"
        raise
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # inductor's choice
    if not cached and shutil.which(compiler) is None:
        return False, f"not compiled: no C++ compiler {compiler} found, install it or set CXX for several times the speed"
    pays, reason = _pays(num_gradient_steps, cached)
    if choice == "auto" and not pays:
        return False, f"not compiled: {reason}"
    untried = _untried()
    if choice == "auto" and untried:
        return False, f"not compiled: {untried}"
    missing = () if cached else engine().missing  # import the compiler only if there is something to compile
    if choice == "auto" and not cached and engine().scan is None:
        return False, f"not compiled: {missing[0]}"
    verdict = f"compiled: {reason}" if choice == "auto" else "compiled"
    return True, "; ".join([verdict, *([untried] if untried else []), *missing])


def _pays(num_gradient_steps: int, cached: bool) -> tuple[bool, str]:
    """True if compiling makes a run cheaper, and why."""
    if cached:
        return True, f"its code is cached, which pays from {STEPS_CACHED:,} gradient steps on"
    runs = num_alike.get()
    if runs > 1:
        total, what = num_gradient_steps * runs, f"{runs} runs of {num_gradient_steps:,} gradient steps share the code"
    else:
        total, what = num_gradient_steps, f"{num_gradient_steps:,} gradient steps"
    if total < STEPS_NEW:
        return False, f"{what}, which pays from {STEPS_NEW:,} on, or from {STEPS_CACHED:,} once the code is cached"
    return True, f"{what}, which pays from {STEPS_NEW:,} on"


class CompiledEpochs:
    """Compiled run_epochs with its argument ``fold`` bound: a library if the function can be described, else traced.

    loop: the fold in Python, for a torch without scan.
    """

    def __init__(self, run_epochs: Callable[..., Epochs], loop: Fold) -> None:
        self._run_epochs, self._loop = run_epochs, loop
        self._as_made = _described(run_epochs)  # the name of a function that is traced
        self._calls: dict[tuple[str, str], tuple[Callable[..., Epochs], CrashRecord]] = {}  # by function and shapes
        self._traced: Callable[..., Epochs] | None = None

    @property
    def is_cached(self) -> bool:
        """True if some process has compiled this function before, for any shapes."""
        description = ahead.description(self._run_epochs)
        marker = None if description is None else _marker(description)
        return marker is not None and marker.exists() and (marker.parent / marker.read_text() / DIGESTS).exists()

    def __call__(self, *arguments: object) -> Epochs:
        """Raises: ConfigError if the folder of the compiled code cannot be used; any error of torch or its compiler."""
        description, shapes = ahead.description(self._run_epochs), _described(arguments)
        what = description or f"{self._as_made} {torch.get_num_threads()}"
        if (what, shapes) in self._calls:
            call, record = self._calls[what, shapes]
            with record:
                return call(*arguments)
        about = torch.__version__, sys.version, what, shapes, torch.backends.cpu.get_cpu_capability()
        with verified(repr(about)) as record:
            library = record.code / ahead.LIBRARY
            call = self._load(library, arguments) if description else self._trace()
            results = call(*arguments)
        if description and library.exists():
            _marker(description).write_text(record.code.parent.name)
        self._calls[what, shapes] = call, record
        return results

    def _load(self, path: Path, arguments: tuple[object, ...]) -> Callable[..., Epochs]:
        if not path.exists():
            parts = engine()
            if parts.scan is None or parts.export is None:
                return self._trace()
            bound = partial(self._run_epochs, fold=parts.scan)
            ahead.compile_library(
                path, parts.export, bound, arguments, {k: v for k, v in parts.options.items() if k not in NOT_AHEAD}
            )
        return ahead.Library(path)

    def _trace(self) -> Callable[..., Epochs]:
        """The function under torch.compile. Runs of one process with equal constants share a graph."""
        if self._traced is None:
            if next(_traced_runs) % MOST_GRAPHS == 0:
                torch.compiler.reset()
            parts = engine()
            if parts.scan is None:
                self._traced = partial(self._run_epochs, fold=_FoldCompiledSteps(parts.options, self._loop))
            else:
                bound = partial(self._run_epochs, fold=parts.scan)
                self._traced = torch.compile(bound, fullgraph=True, dynamic=False, options=parts.options)
        return self._traced


def _marker(description: str) -> Path:
    """The file that names the folder of a function's compiled code."""
    return private_dir() / f"compiled-{hashlib.sha256(description.encode()).hexdigest()[:16]}"


def failure(error: Exception) -> str:
    """A clause about an error in compiling, or in calling compiled code."""
    if isinstance(error, ConfigError):
        return str(error).rstrip(".")
    names = {cls.__name__ for cls in type(error).__mro__}  # by name: the classes are private
    if "CppCompileError" in {*names, *first_line(error).split(":")}:
        return f"the C++ compiler failed ({first_line(error)}); install g++ and Python's headers"
    explanation = re.search(r"Explanation: (.{1,120})", str(error))  # of code that torch cannot trace
    return f"torch cannot compile this update ({type(error).__name__}: {explanation[1] if explanation else first_line(error)})"


def was_stopped(error: BaseException | None) -> bool:
    """True if the C++ compiler was ended by the signal that Ctrl-C or a scheduler sends to every process of a run."""
    while error is not None:
        if isinstance(error, subprocess.CalledProcessError) and -error.returncode in (signal.SIGINT, signal.SIGTERM):
            return True
        if type(error).__name__ == "InvalidCxxCompiler":  # it exists, but did not answer --version
            return True
        error = error.__cause__ or error.__context__
    return False


def _described(x: object) -> str:
    """Describe functions with their bound arguments, and tensors by dtype, shape and stride: graphs depend on nothing else."""
    if isinstance(x, partial):
        return f"{_described(x.func)}{_described(x.args)}{_described(x.keywords)}"
    if isinstance(x, Tensor):
        return f"{x.dtype}{tuple(x.shape)}{x.stride()}"
    if isinstance(x, dict):
        return f"{{{', '.join(f'{key}: {_described(value)}' for key, value in x.items())}}}"
    if isinstance(x, tuple | list):
        return f"({', '.join(map(_described, x))})"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(x))


def _untried() -> str:
    """A clause if this minor version of torch was not tried, else an empty string."""
    minor = ".".join(torch.__version__.split(".")[:2])
    if minor in TRIED:
        return ""
    return f"torch {minor} has not been tried with the compiled engine (tried: {', '.join(TRIED)})"


@cache
def engine() -> Engine:
    """Import the private APIs. Importing inductor creates its cache folder."""
    missing = []
    scan, why = _load("torch._higher_order_ops.scan", "scan")
    if why:
        missing.append(f"torch has no scan ({why})")
    chosen = {
        "cpp_wrapper": True,  # kernels are called from C++
        "pattern_matcher": False,  # it would fuse a product and its bias into a call that first copies the bias to every row
        "unsafe_marked_cacheable_functions": {"torch.ops.higher_order.scan": torch.__version__},  # or scan is not cached on disk
        "cpp.vec_isa_ok": True,  # trust the processor's flags instead of testing them at every start
        "cpp_cache_precompile_headers": False,  # 300 MB in the temporary folder, where anyone could plant them; saves no time
        "aot_inductor.precompile_headers": False,  # likewise
    }
    known = set(torch._inductor.list_options())
    unknown = sorted(set(chosen) - known)
    if unknown:
        missing.append(f"inductor has no option {', '.join(unknown)}")
    options = {key: value for key, value in chosen.items() if key in known}
    products, why = _load("rgpo.learning.accel.onednn_pass", "Products")
    if not why and _untried():  # takes seconds, so a tried version imports it only when a graph is not found on disk
        why = _load("rgpo.learning.accel.onednn_kernel", "product")[1]
    if why:
        missing.append(f"without oneDNN's matrix products ({why})")
    else:
        options["post_grad_custom_post_pass"] = products()
    export, why = _load("torch.export._trace", "_export")
    if why or not hasattr(torch._C, "_aoti"):
        missing.append(f"traced anew at each start ({why or 'torch has no loader of libraries'})")
    return Engine(scan, export if hasattr(torch._C, "_aoti") else None, options, tuple(missing))


def _load(module: str, name: str) -> tuple[Any, str]:
    """A private object and an empty string, or None and the error's first line."""
    try:
        return getattr(importlib.import_module(module), name), ""
    except Exception as error:  # anything can happen in code that was not written for this torch
        return None, first_line(error)


class _FoldCompiledSteps:
    """``fold`` without scan: both loops in Python, each gradient step compiled."""

    def __init__(self, options: dict[str, Any], loop: Fold) -> None:
        self._options, self._loop = options, loop
        self._depth = 0  # 1 over epochs, 2 over minibatches

    def __call__(self, step: Step, carry: Tensors, columns: Tensors) -> tuple[Tensors, Tensors]:
        self._depth += 1
        if self._depth == 2:
            step = torch.compile(step, fullgraph=True, dynamic=False, options=self._options)
        try:
            return self._loop(step, carry, columns)
        finally:
            self._depth -= 1
