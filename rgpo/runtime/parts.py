"""Parquet files that are verified by reading them back, and numbered part files whose rows survive kills and power failures."""

from __future__ import annotations

import bisect
import errno
import functools
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgpo import atomic
from rgpo.errors import StorageError
from rgpo.runtime import columns, manifest, reader

FLUSH_ROWS = 1_000
FLUSH_SECONDS = 30.0
KINDS = ("metrics", "samples", "rollouts")
Row = Mapping[str, object]


def write_atomically(table: pa.Table, path: Path, key: Sequence[str] = ()) -> None:
    """Replace a parquet file atomically, after reading the new one back.

    key: columns whose decoded values are compared, in addition to the bytes of the file.

    Raises: Unreadable if the file read back differs; OSError if the file cannot be written.
    """
    _replace(path, encode(table), table, key)


def _replace(path: Path, data: bytes, table: pa.Table, key: Sequence[str]) -> None:
    with atomic.replacing(path, fsync=True) as aside:
        atomic.fill(aside, data)
        with reader.opened(aside, reader.MAX_PARQUET) as stored:
            same = stored.read() == data
        if same and key:
            with reader.parquet(aside) as file:
                same = file.read().select(key).equals(table.select(key))
        if not same:
            raise reader.Unreadable(f"{path.name} was not stored as it was written")


def write_part(folder: Path, table: pa.Table) -> None:
    """Write rows as part 0 of attempt 0, which precedes those of all attempts; their configuration metadata is dropped.

    Raises: Unreadable if the file read back differs; OSError if the file cannot be written.
    """
    table = table.replace_schema_metadata(None)
    data = encode(table)
    _replace(folder / manifest.part_name(0, 0, data), data, table, ())


def encode(table: pa.Table, keep_types: bool = True) -> bytes:
    """The bytes of a parquet file with our compression settings.

    keep_types: store Arrow's types. Without them, which is a tenth of a file of 500 rows, dictionary columns are read as strings.
    """
    floats = [f.name for f in table.schema if pa.types.is_float32(f.type)]
    floats += [f"{f.name}.list.element" for f in table.schema if f.type == pa.list_(pa.float32())]
    words = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
    counters = [f.name for f in table.schema if pa.types.is_integer(f.type)]
    stream = io.BytesIO()
    with pq.ParquetWriter(
        stream,
        table.schema,
        compression="zstd",
        compression_level=9,
        use_dictionary=words,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT") | dict.fromkeys(counters, "DELTA_BINARY_PACKED"),
        store_schema=keep_types,
        write_statistics=False,  # would be a tenth of a file, and no reader skips row groups
        write_page_checksum=True,
    ) as writer:
        writer.write_table(table)
        if not keep_types:  # otherwise the metadata is part of the stored schema
            writer.add_key_value_metadata(table.schema.metadata or {})
    return stream.getvalue()


def _read_rows(path: Path, schema: pa.Schema, key: Sequence[str]) -> pa.Table:
    """The rows of a file with this schema; extra columns are kept, and missing columns of numbers are filled with NaN.

    Raises: Unreadable if the file is damaged, has another configuration or other column types, or if keys are missing.
    """
    damage = manifest.part_damage(path)
    if damage:
        raise reader.Unreadable(damage)
    with reader.parquet(path) as file:
        table = file.read()
    own, stored = (_config(metadata) for metadata in (schema.metadata, table.schema.metadata))
    if own and not _is_same_run(own, stored):
        raise reader.Unreadable(f"{path.name} is of another run")
    names, known = table.column_names, set(schema.names)
    fits = len(set(names)) == len(names) and set(key) <= set(names)
    fits = fits and all(table.schema.field(name).type.equals(schema.field(name).type) for name in names if name in known)
    if not fits or any(table[name].null_count for name in key):
        raise reader.Unreadable(f"{path.name} has other columns than this run")
    for field in schema:
        if field.name not in names and pa.types.is_float32(field.type):
            table = table.append_column(field, columns.array([math.nan] * len(table), field.type))
    return table


@functools.lru_cache(maxsize=8)  # all parts of an attempt have the same text, so the cache can be small
def _is_same_run(own: str, stored: str) -> bool:
    return own == stored or reader.same_identity(reader.parse_yaml(Path("config.yaml"), own), stored)


def _config(metadata: Mapping[bytes, bytes] | None) -> str:
    return (metadata or {}).get(b"config", b"").decode(errors="replace")


def _keys(table: pa.Table, key: Sequence[str]) -> set[tuple[object, ...]]:
    return set(zip(*(table[name].to_pylist() for name in key), strict=True))


def _split(table: pa.Table, iteration: int) -> tuple[pa.Table, pa.Table]:
    """Split sorted rows into those up to an iteration and those after it."""
    count = bisect.bisect_right(table["iteration"].to_pylist(), iteration)
    return table.slice(0, count), table.slice(count)


def part_files(folder: Path) -> list[Path]:
    """The part files in a folder, in the order they were written."""
    return sorted(folder.glob("part-*.parquet"))


@contextmanager
def storing(run_dir: Path) -> Iterator[None]:
    """``atomic.storing`` for files that are read back: Unreadable becomes StorageError, too.

    Raises: StorageError if a file cannot be read or written, or if rows are lost.
    """
    try:
        with atomic.storing(run_dir):
            yield
    except reader.Unreadable as error:
        raise StorageError(f"results_dir: {run_dir}: {error}; repeat the command, which measures lost rows again.") from error


class PartFiles:
    """Rows of one schema in numbered part files; every attempt at a run adds its own.

    Rows measured by an earlier attempt after the last checkpoint are kept until they are measured again.
    """

    def __init__(self, run_dir: Path, kind: str, schema: pa.Schema, key: tuple[str, ...], attempt: int) -> None:
        """Read the rows of earlier attempts; damaged files are set aside and listed in ``damage``."""
        self.run_dir, self.folder, self.schema, self.key = run_dir, run_dir / kind, schema, key
        self.path = run_dir / f"{kind}.parquet"  # the joined file
        self.rows: list[Row] = []  # buffered rows
        self.damage: list[str] = []
        self._attempt = attempt
        self._num_parts = 0
        self._last_flush = time.monotonic()
        with storing(run_dir):
            if self.folder.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "it is a link", str(self.folder))
            atomic.make_folder(self.folder)
            atomic.remove_temporary(self.folder)
            self._later = self._read(self._set_aside)  # earlier attempts' rows for iterations that this one has not reached
        self._later_parts = part_files(self.folder)
        self.keys: set[tuple[object, ...]] = set()  # keys of all rows except those in _later

    def _set_aside(self, path: Path, why: str) -> None:
        moved = atomic.set_aside(path, self.run_dir, "damaged")
        self.damage.append(f"{why}; it was renamed to {moved.name}")

    def _read(self, on_damage: Callable[[Path, str], None]) -> pa.Table:
        """The rows of the joined file and all parts, sorted by key; among rows with equal keys, the last one written is kept."""
        tables = [columns.table([], self.schema)]
        for path in [*([self.path] if os.path.lexists(self.path) else []), *part_files(self.folder)]:
            try:
                tables.append(_read_rows(path, self.schema, self.key))
            except reader.Unreadable as error:
                on_damage(path, str(error))
        table = pa.concat_tables(tables, promote_options="default").unify_dictionaries()
        keys = list(zip(*(table[name].to_pylist() for name in self.key), strict=True))
        place = {key: i for i, key in enumerate(keys)}
        if sorted(place) == keys:  # the usual case; take() below has to import pyarrow's compute functions
            return table.combine_chunks()
        return table.take(columns.array([place[key] for key in sorted(place)], pa.int64())).combine_chunks()

    @property
    def num_later(self) -> int:
        """Number of earlier attempts' rows for iterations that this attempt has not reached."""
        return len(self._later)

    def read_until(self, iteration: int) -> set[tuple[object, ...]]:
        """The keys of earlier attempts' rows up to an iteration."""
        return _keys(_split(self._later, iteration)[0], self.key)

    def resume(self, iteration: int) -> None:
        """Continue after an iteration: join the earlier parts into one with the rows up to it and one with the later rows."""
        earlier, later = _split(self._later, iteration)
        self.keys = _keys(earlier, self.key)
        self._write(earlier, self.key)
        self._keep(later)

    def _keep(self, later: pa.Table) -> None:
        """Replace the parts that hold later rows by a single part."""
        part = self._write(later, self.key)
        with storing(self.run_dir):
            atomic.remove(self._later_parts)
        self._later, self._later_parts = later, part

    def add(self, row: Row) -> None:
        """Buffer a row; flush after 1,000 rows or 30 s."""
        self.rows.append(row)
        if len(self.rows) >= FLUSH_ROWS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows as a new part.

        Raises: StorageError if it cannot be written.
        """
        self._last_flush = time.monotonic()
        if self.rows:
            table = columns.table(self.rows, self.schema)
            self._write(table)
            self.keys |= _keys(table, self.key)
            self.rows = []
            if len(self._later):
                self._keep(_split(self._later, max(table["iteration"].to_pylist()))[1])

    def _write(self, table: pa.Table, key: Sequence[str] = ()) -> list[Path]:
        """Write a table as a new part and return its path in a list; [] for a table without rows."""
        if not len(table):
            return []
        data = encode(table)
        path = self.folder / manifest.part_name(self._attempt, self._num_parts, data)
        with storing(self.run_dir):
            _replace(path, data, table, key)
        self._num_parts += 1
        return [path]

    def join(self) -> pa.Table:
        """Flush, read everything back and return all rows.

        Raises: StorageError if rows that were written are lost.
        """

        def fail(path: Path, why: str) -> None:
            raise reader.Unreadable(why)

        self.flush()
        with storing(self.run_dir):
            table = self._read(fail)
            lost = self.keys - _keys(table, self.key)
            if lost:
                raise reader.Unreadable(f"part files with {len(lost)} row(s) of {self.folder.name} were deleted")
        return table.replace_schema_metadata(self.schema.metadata)
