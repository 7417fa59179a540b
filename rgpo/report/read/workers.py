"""Worker processes for reading and drawing: two for many runs, none for few."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rgpo.errors import ConfigError

MANY_RUNS = 60  # from this number on, processes save more time than it takes to start them
GARBAGE_THRESHOLD = 20_000  # new objects; with Python's default, 700, figures with many parts take a tenth longer
NUM_PROCESSES = 2  # more would exceed the report's memory limit

Item = TypeVar("Item")
Result = TypeVar("Result")


class Map(Protocol):
    """map(function, items) with a chunk size; results are in the order of the items."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], chunk: int, /) -> Iterable[Result]: ...


@contextmanager
def workers(num_runs: int) -> Iterator[Map]:
    """Yield a Map, which uses processes if there are many runs and at least two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_runs < MANY_RUNS or cores < 2:
        yield _serial
        return
    method = "fork" if sys.platform == "linux" else "spawn"  # forking shares imported modules, but is only safe on Linux
    gc.collect()
    gc.freeze()  # loaded objects are permanent; scanning them would take time and, after a fork, memory
    try:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(NUM_PROCESSES, context, initializer=_begin) as pool:

            def parallel(function: Callable[[Item], Result], items: Iterable[Item], chunk: int, /) -> Iterable[Result]:
                return pool.map(function, items, chunksize=chunk)

            try:
                yield parallel
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process that read or drew was killed (out of memory?); give one experiment=, or fewer figures"
        ) from error
    finally:
        gc.unfreeze()


def _begin() -> None:
    """Ignore Ctrl-C, which the parent process handles."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _serial(function: Callable[[Item], Result], items: Iterable[Item], chunk: int, /) -> Iterable[Result]:
    return map(function, items)
