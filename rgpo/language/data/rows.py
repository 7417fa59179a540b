"""Rows of data files: jsonl, json, csv, tsv and parquet, optionally gzipped, in UTF-8 with or without a byte order mark.

The format is determined by the contents; only csv (.csv) and tab-separated text (.tsv) are recognized by the file's name.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from rgpo.errors import ConfigError, first_line, printable, require
from rgpo.files import MAX_PARQUET, Unreadable, opened, parquet

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
ENDINGS = tuple(f"{kind}{packed}" for kind in KINDS for packed in ("", ".gz"))
SEPARATORS = {".csv": ",", ".tsv": "\t"}
LFS_POINTER = b"version https://git-lfs"  # the first bytes of a file that `git clone` did not download
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
MAX_LINE = 16 * 2**20  # bytes
MAX_WHOLE = 4 * 2**30  # bytes of a JSON array or of a gzipped parquet file
DAMAGE = (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, Unreadable)

if TYPE_CHECKING:
    Stream = io.BufferedReader[io.RawIOBase]


class ForeignFile(ConfigError):
    """The file has an unknown format."""


class Row(NamedTuple):
    """A row with its place in the file; ``defect`` is the reason if it cannot be read."""

    place: str  # such as "line 3"
    columns: dict[str, object]
    defect: str = ""


def read_rows(key: str, file: Path) -> Iterator[Row]:
    """The rows of a file in order; a damaged row has a defect.

    Raises: ConfigError if the file cannot be read; ForeignFile if its format is unknown.
    """
    place = "the beginning"
    try:
        with opened(file, MAX_PARQUET) as raw:
            start = raw.read(len(LFS_POINTER))
            require(start != LFS_POINTER, key, file, "is a pointer of Git LFS without the data; run `git lfs pull` in the clone.")
            raw.seek(0)
            packed = start.startswith(GZIP)
            stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw) if packed else raw))
            for row in _rows(key, file, stream, packed):
                place = row.place
                yield row
    except DAMAGE as error:
        why = str(error) if isinstance(error, Unreadable) else first_line(error)
        raise ConfigError(f"{key}={file}: cannot be read after {place} ({printable(why)}); fix or remove the file.") from error


def _rows(key: str, file: Path, stream: Stream, packed: bool) -> Iterator[Row]:
    start = stream.peek(8192).removeprefix(codecs.BOM_UTF8)
    first = start.lstrip()[:1]
    kind = next((kind for kind in KINDS if file.name.lower().removesuffix(".gz").endswith(kind)), "")
    if start.startswith(PARQUET):
        return _parquet_rows(file, stream, packed)
    if not start:
        return iter(())
    if first == b"[":
        return _array_rows(key, file, stream)
    if kind in SEPARATORS:
        return _table_rows(stream, SEPARATORS[kind])
    if first != b"{" and kind != ".jsonl":
        raise ForeignFile(f"{key}={file}: is not jsonl, json, csv or parquet; convert it to one of them.")
    return _lines(key, file, stream)


def _lines(key: str, file: Path, stream: Stream) -> Iterator[Row]:
    """Rows of jsonl, or of a single JSON object over several lines."""
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
        if len(line) > MAX_LINE:
            raise ConfigError(f"{key}={file}: line {number} is longer than {MAX_LINE} bytes; remove it.")
        place = f"line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            yield Row(place, {}, "is not UTF-8 text")
            continue
        if not text:
            continue
        if number == 1 and text == "{":  # a JSON object over several lines, not jsonl
            yield from _object_rows(key, file, line + stream.read(MAX_WHOLE))
            return
        yield _parsed(place, text)


def _parsed(place: str, text: str) -> Row:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Row(place, {}, f"is not valid JSON ({first_line(error)})")
    return _of_json(place, found)


def _of_json(place: str, found: object) -> Row:
    if not isinstance(found, dict):
        return Row(place, {}, "is not a JSON object")
    return Row(place, found)


def _load(key: str, file: Path, data: bytes) -> object:
    require(len(data) <= MAX_WHOLE, key, file, f"is larger than {MAX_WHOLE} bytes; convert it to jsonl.")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{key}={file}: is not valid JSON ({first_line(error)}); fix the file.") from error


def _array_rows(key: str, file: Path, stream: Stream) -> Iterator[Row]:
    found = _load(key, file, stream.read(MAX_WHOLE + 1))
    assert isinstance(found, list)
    for number, entry in enumerate(found, 1):
        yield _of_json(f"entry {number}", entry)


def _object_rows(key: str, file: Path, data: bytes) -> Iterator[Row]:
    """Rows of a JSON object: those of its list if that is its only entry, otherwise the object itself."""
    found = _load(key, file, data)
    assert isinstance(found, dict)
    lists = [value for value in found.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    rows = lists[0] if len(lists) == 1 and len(found) == 1 else [found]
    for number, entry in enumerate(rows, 1):
        yield _of_json(f"entry {number}", entry)


def _table_rows(stream: Stream, separator: str) -> Iterator[Row]:
    """Rows of a table; a cell with a JSON list of objects, as used for dialogues, is parsed."""
    csv.field_size_limit(MAX_LINE)
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    reader = csv.DictReader(text, delimiter=separator, strict=True)
    for row in reader:
        place = f"line {reader.line_num}"
        if None in row or None in row.values():
            yield Row(place, {}, f"does not have the {len(reader.fieldnames or ())} cells of the first line")
        else:
            yield Row(place, {name: _cell(value) for name, value in row.items()})


def _cell(text: str) -> object:
    if text.startswith("[{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


def _parquet_rows(file: Path, stream: Stream, packed: bool) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    if packed:
        data = stream.read(MAX_WHOLE + 1)
        try:
            batches = [pq.read_table(io.BytesIO(data)).to_pylist()]
        except Exception as error:  # pyarrow raises many kinds of errors for damaged files
            raise Unreadable.file(file, first_line(error)) from None
        for number, row in enumerate(batches[0], 1):
            yield Row(f"row {number}", row)
        return
    with parquet(file) as table:
        for batch in table.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", row)
