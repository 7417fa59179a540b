"""Two processes for reading and drawing many runs, none for few."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

MANY_RUNS = 60  # from this number on, processes save more time than their start costs
GARBAGE_THRESHOLD = 20_000  # new objects; Python's default, 700, costs a tenth of the time of a figure with many parts
NUM_PROCESSES = 2  # more would exceed the memory that a report may use

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """map(function, items) with a chunk size; the results are in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], chunk: int, /) -> Iterable[Result]: ...


@contextmanager
def workers(num_runs: int) -> Iterator[Map]:
    """Yield a Map that uses processes if there are many runs and at least two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_runs < MANY_RUNS or cores < 2:
        yield _serial
        return
    method = "fork" if sys.platform == "linux" else "spawn"  # a fork shares what is imported, but is safe on Linux only
    gc.collect()
    gc.freeze()  # what is loaded does not become garbage; scanning it costs time, and after a fork memory
    try:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(NUM_PROCESSES, context, initializer=gc.set_threshold, initargs=(GARBAGE_THRESHOLD,)) as pool:

            def parallel(function: Callable[[Item], Result], items: Iterable[Item], chunk: int, /) -> Iterable[Result]:
                return pool.map(function, items, chunksize=chunk)

            yield parallel
    finally:
        gc.unfreeze()


def _serial(function: Callable[[Item], Result], items: Iterable[Item], chunk: int, /) -> Iterable[Result]:
    return map(function, items)
