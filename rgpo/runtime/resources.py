"""What this machine can hold: cpus, memory, and how many runs at a time."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def num_cpus() -> int:
    """Cpus that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_gb() -> float:
    """Memory that can be had without swapping, in GB (1e9 bytes); infinite where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError, ValueError):
        return float("inf")


def jobs_that_fit(threads: int, memory_gb: float) -> int:
    """Runs of so many threads and so much memory that fit at a time: cpus // threads, fewer if memory is short, at least 1."""
    return max(1, min(num_cpus() // threads, int(min(available_gb() / memory_gb, 2**31))))
