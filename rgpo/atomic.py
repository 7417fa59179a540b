"""Files that are replaced as a whole or not at all, and locks between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Yield a hidden path beside ``path`` to write to; it replaces ``path`` at the end, or is deleted if an error is raised.

    fsync: the contents are on the disk before the old file is gone, so that even a power cut leaves one of the two.
    """
    aside = path.with_name(f".{path.name}.writing")
    try:
        yield aside
        if fsync:
            with aside.open("rb") as file:
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)  # half a file only takes space
        raise


def write_bytes(path: Path, data: bytes | memoryview, *, fsync: bool = False) -> None:
    """Replace a file atomically."""
    with replacing(path, fsync=fsync) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str, *, fsync: bool = False) -> None:
    """Replace a text file (UTF-8) atomically."""
    write_bytes(path, text.encode(), fsync=fsync)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on a file, created if needed; the kernel releases it however the process ends.

    Yields False if another process holds the lock and ``wait`` is false.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_locked(path: Path) -> bool:
    """True if a living process holds the lock on a file."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
