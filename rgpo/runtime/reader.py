"""The one way to read files: regular ones of limited size that hold UTF-8, JSON, YAML or parquet of the declared types."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import IO, TYPE_CHECKING, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml

from rgpo.errors import printable as printable
from rgpo.runtime.schema import NOT_IDENTITY

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_TEXT = 4 << 20  # bytes of a text file
MAX_PARQUET = 64 << 30  # bytes
MAX_VALUES = 250_000_000  # of all columns of a parquet file
MAX_LIST = 100_000  # entries of its lists, on average
MAX_DEPTH, MAX_NODES = 50, 100_000  # of JSON and YAML, with aliases expanded
_TOO_LARGE = "larger than {} bytes"
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Typed = TypeVar("_Typed")


class Unreadable(Exception):
    """A file or run that cannot be used; the text is the reason, such as "state.json cannot be read (not valid JSON)"."""

    @classmethod
    def file(cls, path: Path, why: str) -> Unreadable:
        """The error of a file."""
        return cls(f"{printable(path.name)} cannot be read ({why})")


class Missing(Unreadable):
    """A file that does not exist."""


def opened(path: Path, limit: int = MAX_TEXT) -> IO[bytes]:
    """Open a regular file, or a link to one; a pipe or device does not block.

    Raises: Unreadable if it is anything else, larger than the limit or cannot be opened; Missing if it does not exist.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except (FileNotFoundError, NotADirectoryError):
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
            data = file.read(limit + 1)  # files of /proc have no size
        except OSError as error:
            raise Unreadable.file(path, str(error.strerror)) from None
    if data is None:  # a device that has nothing yet
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


def read_json(path: Path, kind: type[_Typed]) -> _Typed:
    """A JSON object with the entries that a TypedDict declares; unknown entries are kept, and entries may be absent.

    Raises: Unreadable, with the key, if the file is damaged or an entry has another type; Missing if it does not exist.
    """
    text = read_text(path)
    try:
        found = _plain(json.loads(text, object_pairs_hook=_unique))
    except RecursionError:
        raise Unreadable.file(path, "too many levels") from None
    except json.JSONDecodeError as error:
        raise Unreadable.file(path, f"not valid JSON, line {error.lineno}" if text.strip() else "it is empty") from None
    except ValueError as error:
        raise Unreadable.file(path, printable(str(error))) from None
    if not isinstance(found, dict):
        raise Unreadable.file(path, "not a mapping")
    for key, hint in typing.get_type_hints(kind).items():
        if key in found and not _fits(found[key], hint):
            raise Unreadable.file(path, f"{key}={printable(json.dumps(found[key]), 60)} has the wrong type")
    return cast(_Typed, found)


def read_yaml(path: Path) -> dict[str, object]:
    """A YAML mapping of plain values: texts, numbers, lists and mappings.

    Raises: Unreadable if the file is damaged or no such mapping; Missing if it does not exist.
    """
    return parse_yaml(path, read_text(path))


def parse_yaml(path: Path, text: str) -> dict[str, object]:
    """The mapping of a text that was read from a file.

    Raises: Unreadable, which names the file, if it is no such mapping.
    """
    try:
        _count_nodes(text)
        found = _plain(yaml.load(text, _YAML))  # noqa: S506  # _YAML is a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Unreadable.file(path, f"not valid YAML{f', line {mark.line + 1}' if mark else ''}") from None
    except (ValueError, OverflowError) as error:  # a date or number that does not exist
        raise Unreadable.file(path, printable(str(error))) from None
    if not isinstance(found, dict):
        raise Unreadable.file(path, "empty or not a mapping")
    return found


def same_identity(config: Mapping[str, object], text: str) -> bool:
    """True if a text is the same configuration, apart from what changes no number; "", of early versions, is."""
    if not text:
        return True
    try:
        stored = parse_yaml(Path("config.yaml"), text)
    except Unreadable:
        return False
    return all(config.get(key) == stored.get(key) for key in {*config, *stored} - set(NOT_IDENTITY))


@contextmanager
def parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file, whose pages are verified as they are read.

    Raises: Unreadable if it is damaged, also for any error while it is read; Missing if it does not exist.
    """
    import pyarrow.parquet as pq

    with opened(path, MAX_PARQUET) as raw:
        try:
            with pq.ParquetFile(raw, pre_buffer=False, page_checksum_verification=True) as file:
                facts = file.metadata
                if facts.num_rows * facts.num_columns > MAX_VALUES:  # facts of single columns abort on a damaged footer
                    raise Unreadable.file(path, "it has too many rows")
                if _num_entries(file) > min(MAX_VALUES, facts.num_rows * facts.num_columns * MAX_LIST):
                    raise Unreadable.file(path, "its lists are too long")
                yield file
        except Unreadable:
            raise
        except Exception as error:  # whatever pyarrow raises for a damaged file
            why = printable(" ".join(str(error).split()), 80).rstrip(". ")
            raise Unreadable.file(path, why or type(error).__name__) from None


def _num_entries(file: pq.ParquetFile) -> int:
    """Entries of all lists; they are scanned first, in little memory, because facts of damaged columns abort."""
    lists = [i for i in range(file.metadata.num_columns) if file.schema.column(i).max_repetition_level]
    if not lists:
        return 0
    file.scan_contents([file.schema.column(i).path for i in lists])
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return sum(group.column(i).num_values for group in groups for i in lists)


def user_path(text: str) -> Path:
    """A path that a user typed, with ~ and ~user expanded; ./~ is a folder of that name, and stays one if expanded again."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111  # Path would take ./~ for ~
    return path.absolute() if path.parts[:1] and path.parts[0].startswith("~") else path


def _count_nodes(text: str) -> None:
    """Raises: ValueError if there are too many nodes or levels, before any of them is made."""
    sizes: dict[str, int] = {}  # anchor -> nodes below it
    outer: list[tuple[str | None, int]] = []  # open collections: anchor, and nodes before it
    nodes = 0
    for event in yaml.parse(text, _YAML):
        if isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(str(event.anchor), MAX_NODES)  # an anchor that is still open contains itself
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            outer.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = outer.pop()
            if anchor is not None:
                sizes[anchor] = nodes - before
        if isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            sizes[event.anchor] = 1
        if nodes >= MAX_NODES or len(outer) > MAX_DEPTH:
            raise ValueError("too many entries or levels")


def _plain(value: object, depth: int = 0) -> object:
    """The value itself.

    Raises: ValueError if anything in it is no text, number, list or mapping that can be used.
    """
    if depth > MAX_DEPTH:
        raise ValueError("too many levels")
    if isinstance(value, dict):
        for key, entry in value.items():
            if not isinstance(key, str | int | float):
                raise ValueError("a key that is not text")
            _plain(key, depth)
            _plain(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _plain(entry, depth + 1)
    elif isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise ValueError("text that is not valid Unicode")
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("a number of more than 64 bits")
    elif not isinstance(value, float | None):
        raise ValueError(f"a value of type {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key that occurs twice")
    return found


def _fits(value: object, hint: object) -> bool:
    """True if a value of JSON has the type of a hint."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(entry, arguments[1]) for entry in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(entry, arguments[0]) for entry in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value is None if hint is type(None) else type(value) is hint
