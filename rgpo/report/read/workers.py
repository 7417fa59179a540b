"""Two processes where there is much to read and draw, none where there is not."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

MANY_RUNS = 60  # from here on processes save more time than their start costs
GARBAGE = 20_000  # new objects until it is looked for; at Python's 700 that is a tenth of the time of a figure with many parts
NUM_PROCESSES = 2  # more would need more memory than the report may take

Map = Callable[[Callable[[Any], Any], Iterable[Any], int], Iterable[Any]]


@contextmanager
def workers(num_runs: int) -> Iterator[Map]:
    """map(function, items, chunk): the results in order; by processes if there are many runs and two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_runs < MANY_RUNS or cores < 2:
        yield lambda function, items, _: map(function, items)
        return
    method = "fork" if sys.platform == "linux" else "spawn"  # a fork shares what is imported, but is safe on Linux alone
    gc.collect()
    gc.freeze()  # what is loaded does not become garbage: looking for it there costs time, and a fork memory
    try:
        context = multiprocessing.get_context(method)
        with ProcessPoolExecutor(NUM_PROCESSES, context, initializer=gc.set_threshold, initargs=(GARBAGE,)) as pool:
            yield lambda function, items, chunk: pool.map(function, items, chunksize=chunk)
    finally:
        gc.unfreeze()
