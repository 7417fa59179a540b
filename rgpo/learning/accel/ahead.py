"""Ahead-of-time compilation: torch writes one shared library, which later processes load without the compiler.

torch.compile traces a function in every process to find out whether its compiled code still applies, which takes longer than
most runs. Here a description replaces tracing: the sources of rgpo and every value that the function reads. A function that
cannot be described, for example because it uses a user's class or a tensor that changes, is left to torch.compile.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rgpo.learning.adam import AdamState, Epochs

LIBRARY = "update.so"
SOURCES = ("core", "gates.py", "learning", "control")  # of rgpo: all that a compiled function may call
SETTINGS = ("TORCHINDUCTOR_", "CXX", "CFLAGS")  # prefixes of the environment variables that the compiler reads
PLAIN = (bool, int, float, str, bytes, type(None))


class Indescribable(Exception):
    """A value that cannot be part of a description."""


def description(function: object) -> str | None:
    """Everything but the arguments that the compiled code of a function depends on; None if it cannot be described."""
    try:
        return f"{_value(function)} {torch.get_num_threads()} threads {_surroundings()}"
    except Indescribable:
        return None


def _value(x: object) -> str:
    """Raises: Indescribable for a value that cannot be described."""
    if isinstance(x, PLAIN):
        return repr(x)
    if isinstance(x, partial):
        return f"partial{_value((x.func, x.args, x.keywords))}"
    if isinstance(x, tuple | list):
        return f"{type(x).__name__}({', '.join(map(_value, x))})"
    if isinstance(x, dict):
        return f"{{{', '.join(f'{name!r}: {_value(value)}' for name, value in x.items())}}}"
    if isinstance(x, types.MethodType):
        return f"{_value(x.__self__)}.{x.__func__.__qualname__}"
    kind = x if isinstance(x, types.FunctionType | type) else type(x)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not name.startswith("rgpo."):
        raise Indescribable
    if isinstance(x, types.FunctionType):
        cells = [cell.cell_contents for cell in x.__closure__ or ()]
        return f"{name}:{x.__code__.co_firstlineno}{_value((cells, x.__defaults__, x.__kwdefaults__))}"
    if isinstance(x, type):
        return name
    if is_dataclass(x):
        return f"{name}{_value(vars(x))}"
    if type(x).__repr__ is object.__repr__:
        raise Indescribable
    return f"{name} {x!r}"  # for example a policy, whose parameters are arguments


@functools.cache
def _surroundings() -> str:
    """A digest of the rgpo code that may be compiled, the compiler's settings and the processor's instruction set."""
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(SETTINGS) and not k.endswith("CACHE_DIR"))
    total = hashlib.sha256(f"{torch.__version__} {sys.version} {_processor()} {settings}\n".encode())
    root = Path(__file__).parents[2]
    for name in SOURCES:
        for path in sorted((root / name).rglob("*.py")) or [root / name]:
            total.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def _processor() -> str:
    """The processor's instruction set, all of which compiled code may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor() or platform.machine())


def compile_library(
    path: Path,
    export: Callable[..., Any],
    function: Callable[..., Epochs],
    arguments: tuple[object, ...],
    options: Mapping[str, object],
) -> None:
    """Compile a function for arguments of these shapes and write the library; export: torch's export function.

    Raises: any error of torch or its compiler.
    """

    class Flat(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            state, statistics, measures = function(*_with_tensors(arguments, iter(tensors)))
            return (*state, statistics, *measures)

    given = tuple(tensors_of(arguments))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about its internals
        program = export(Flat(), given, strict=True, pre_dispatch=False)  # later passes cannot trace a gradient in a scan
        module = program.module(check_guards=False)
        torch._inductor.aot_compile(module, given, options={**options, "aot_inductor.output_path": str(path)})


class Library:
    """The function in a library; its arguments must have the shapes that it was compiled for."""

    def __init__(self, path: Path) -> None:
        self._runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)

    def __call__(self, *arguments: object) -> Epochs:
        found = self._runner.run(list(tensors_of(arguments)))
        count = len(AdamState._fields)
        return AdamState(*found[:count]), found[count], found[count + 1 :]


def _with_tensors(tree: tuple[object, ...], tensors: Iterator[Tensor]) -> tuple[Any, ...]:
    """A copy of a tree of tuples in which its tensors are replaced by others."""
    parts = [next(tensors) if isinstance(x, Tensor) else _with_tensors(x, tensors) if isinstance(x, tuple) else x for x in tree]
    make: Callable[..., tuple[Any, ...]] = type(tree)
    return make(*parts) if hasattr(tree, "_fields") else tuple(parts)


def tensors_of(tree: object) -> Iterator[Tensor]:
    """The tensors of a tree of tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for part in tree:
            yield from tensors_of(part)
