"""Rebuild the report whenever results change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rgpo.errors import ConfigError
from rgpo.report.settings import Settings

WATCHED = ("*/*/*.parquet", "*/*/state.json", "*/*/metrics/*.parquet")


def watch(settings: Settings, report: Callable[[], int]) -> int:
    """Call report() now and after every change of the results until Ctrl-C; returns its last exit code."""
    code, before = 0, None
    try:
        while True:
            now = fingerprint(Path(settings.results_dir))
            if now != before:
                try:
                    code = report()
                except ConfigError as error:
                    code = 2
                    print(f"rgpo-report: {error}", file=sys.stderr, flush=True)
                before = now
            time.sleep(settings.watch_every_s)
    except KeyboardInterrupt:
        return code


def fingerprint(results_dir: Path) -> frozenset[tuple[str, int, int]]:
    """Name, time and size of every file that runs rewrite and the report reads."""
    found = set()
    for pattern in WATCHED:
        for path in results_dir.glob(pattern):
            try:
                stat = path.stat()
            except FileNotFoundError:  # a file was joined or replaced in the meantime
                continue
            found.add((str(path), stat.st_mtime_ns, stat.st_size))
    return frozenset(found)
