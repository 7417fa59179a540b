"""CPUs and free memory of the machine, the number of runs that fit at a time, and the threads of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rgpo import interrupt

MEMINFO = Path("/proc/meminfo")


def num_cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gb() -> float:
    """Memory available without swapping, in GB (1e9 bytes); infinite where the system does not report it."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        return float("inf")


def jobs_that_fit(threads: int, memory_gb: float) -> int:
    """Number of runs, with this many threads and GB each, that CPUs and free memory allow at a time, but at least 1."""
    return max(1, min(num_cpus() // threads, int(min(available_gb() / memory_gb, 2**31))))


def compute_threads(task: object, number: int) -> int:
    """Threads for torch and BLAS out of a run's number of threads; a task may reserve some for its environments."""
    divide = getattr(task, "divide_threads", None)
    return number if divide is None else int(divide(number))


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """Limit the threads of torch and of numpy's BLAS, which would otherwise use every core and busy-wait for work."""
    with interrupt.Deferred():
        import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(number):
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
