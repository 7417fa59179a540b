"""Safe reading of untrusted files: regular files of limited size, as bytes, UTF-8 text or parquet."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from rgpo.errors import printable

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_TEXT = 4 << 20  # bytes in a text file
MAX_PARQUET = 64 << 30  # bytes
MAX_VALUES = 250_000_000  # entries in all columns of a parquet file
MAX_LIST = 100_000  # average length of its lists
_TOO_LARGE = "larger than {} bytes"


class Unreadable(Exception):
    """A file or run cannot be used; the message is the reason, such as "state.json cannot be read (not valid JSON)"."""

    @classmethod
    def file(cls, path: Path, why: str) -> Unreadable:
        """The error for a file and the reason why it cannot be read."""
        return cls(f"{printable(path.name)} cannot be read ({why})")


class Missing(Unreadable):
    """The file does not exist."""


def opened(path: Path, limit: int = MAX_TEXT) -> IO[bytes]:
    """Open a regular file, or a link to one, without blocking on pipes or devices.

    Raises: Unreadable if it is not a regular file, exceeds the limit or cannot be opened; Missing if it does not exist.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise Unreadable.file(path, "it is a link to nothing") from None
        raise Missing(f"{printable(path.name)} is missing") from None
    except IsADirectoryError:
        raise Unreadable.file(path, "it is a folder") from None
    except (OSError, ValueError) as error:
        raise Unreadable.file(path, getattr(error, "strerror", None) or str(error)) from None
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
        file.close()
        raise Unreadable.file(path, _TOO_LARGE.format(limit) if stat.S_ISREG(found.st_mode) else "it is not a regular file")
    return file


def read_bytes(path: Path, limit: int = MAX_TEXT) -> bytes:
    """The contents of a regular file.

    Raises: Unreadable if it cannot be read or is larger than the limit; Missing if it does not exist.
    """
    with opened(path, limit) as file:
        try:
            data = file.read(limit + 1)  # files in /proc report no size
        except OSError as error:
            raise Unreadable.file(path, str(error.strerror)) from None
    if data is None:  # a device without data
        raise Unreadable.file(path, "it has no contents")
    if len(data) > limit:
        raise Unreadable.file(path, _TOO_LARGE.format(limit))
    return data


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises: Unreadable if it cannot be read or has another encoding; Missing if it does not exist.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable.file(path, "not UTF-8 text") from None


@contextmanager
def parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file and verify the checksum of each page as it is read.

    Raises: Unreadable if it is damaged or any error occurs while it is open; Missing if it does not exist.
    """
    import pyarrow.parquet as pq

    with opened(path, MAX_PARQUET) as raw:
        try:
            with pq.ParquetFile(raw, pre_buffer=False, page_checksum_verification=True) as file:
                facts = file.metadata
                if facts.num_rows * facts.num_columns > MAX_VALUES:  # first: damaged column metadata can abort the process
                    raise Unreadable.file(path, "it has too many rows")
                if _num_entries(file) > min(MAX_VALUES, facts.num_rows * facts.num_columns * MAX_LIST):
                    raise Unreadable.file(path, "its lists are too long")
                yield file
        except Unreadable:
            raise
        except Exception as error:  # pyarrow raises many kinds of errors for damaged files
            why = printable(" ".join(str(error).split()), 80).rstrip(". ")
            raise Unreadable.file(path, why or type(error).__name__) from None


def _num_entries(file: pq.ParquetFile) -> int:
    """Entries in all list columns, which are scanned first, in little memory: damaged column metadata can abort the process."""
    lists = [i for i in range(file.metadata.num_columns) if file.schema.column(i).max_repetition_level]
    if not lists:
        return 0
    file.scan_contents([file.schema.column(i).path for i in lists])
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return sum(group.column(i).num_values for group in groups for i in lists)
