"""All reading of run files: the functions of rgpo.files, and JSON and YAML with type checks."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import UnionType
from typing import Literal, TypeVar, Union, cast, get_args, get_origin, is_typeddict

import yaml

from rgpo.errors import printable as printable
from rgpo.files import MAX_LIST as MAX_LIST
from rgpo.files import MAX_PARQUET as MAX_PARQUET
from rgpo.files import MAX_TEXT as MAX_TEXT
from rgpo.files import MAX_VALUES as MAX_VALUES
from rgpo.files import Missing as Missing
from rgpo.files import Unreadable as Unreadable
from rgpo.files import opened as opened
from rgpo.files import parquet as parquet
from rgpo.files import read_bytes as read_bytes
from rgpo.files import read_text as read_text
from rgpo.runtime.schema import NOT_IDENTITY

MAX_DEPTH, MAX_NODES = 50, 100_000  # limits for JSON and YAML, with aliases expanded
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"
_Typed = TypeVar("_Typed")


class _YAML(_PARSER):  # type: ignore[misc,valid-type]  # PyYAML's C or Python loader
    """A safe loader that rejects duplicate keys, of which PyYAML would use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice} occurs twice")
        return cast(dict[Hashable, object], super().construct_mapping(node, deep))


@functools.cache
def _hints(kind: Hashable) -> dict[str, object]:
    return typing.get_type_hints(kind)  # cached, because hints are compiled on every call


def read_json(path: Path, kind: type[_Typed]) -> _Typed:
    """Read a JSON object and check the entries that a TypedDict declares; extra entries are kept, and entries may be missing.

    Raises: Unreadable if the file is damaged or an entry (which is named) has the wrong type; Missing if it does not exist.
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
    for key, hint in _hints(cast(Hashable, kind)).items():
        if key in found and not _fits(found[key], hint):
            raise Unreadable.file(path, f"{key}={printable(json.dumps(found[key]), 60)} has the wrong type")
    return cast(_Typed, found)


def read_yaml(path: Path) -> dict[str, object]:
    """Read a YAML mapping of plain values: texts, numbers, lists and mappings.

    Raises: Unreadable if the file is damaged or is not such a mapping; Missing if it does not exist.
    """
    return parse_yaml(path, read_text(path))


def parse_yaml(path: Path, text: str) -> dict[str, object]:
    """Parse YAML text that was read from the file ``path``.

    Raises: Unreadable, which names the file, if the text is not a mapping of plain values.
    """
    try:
        _count_nodes(text)
        found = _plain(yaml.load(text, _YAML))  # noqa: S506  # _YAML is a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise Unreadable.file(path, f"not valid YAML{f', line {mark.line + 1}' if mark else ''}") from None
    except (ValueError, OverflowError) as error:  # an invalid date or number
        raise Unreadable.file(path, printable(str(error))) from None
    if not isinstance(found, dict):
        raise Unreadable.file(path, "empty or not a mapping")
    return found


def same_identity(config: Mapping[str, object], text: str) -> bool:
    """True if a YAML text has the same identity as a configuration; also for "", which early versions stored."""
    if not text:
        return True
    try:
        stored = parse_yaml(Path("config.yaml"), text)
    except Unreadable:
        return False
    return all(config.get(key) == stored.get(key) for key in {*config, *stored} - set(NOT_IDENTITY))


def user_path(text: str) -> Path:
    """Expand ~ and ~user in a path that a user typed; ./~ means a folder of that name, even if the result is expanded again."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111  # Path would turn ./~ into ~
    return path.absolute() if path.parts[:1] and path.parts[0].startswith("~") else path


def _count_nodes(text: str) -> None:
    """Count nodes and levels before any of them is constructed.

    Raises: ValueError if there are too many.
    """
    sizes: dict[str, int] = {}  # anchor -> number of nodes below it
    outer: list[tuple[str | None, int]] = []  # open collections: anchor, and number of nodes before it
    nodes = 0
    for event in yaml.parse(text, _YAML):
        if isinstance(event, yaml.AliasEvent):
            nodes += sizes.get(str(event.anchor), MAX_NODES)  # an anchor that is still open: the collection contains itself
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
    """Return the value unchanged after checking that it is plain.

    Raises: ValueError if anything in it is not a usable text, number, list or mapping.
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
    """True if a JSON value matches a type hint."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is Literal:
        return value in arguments
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(entry, arguments[1]) for entry in value.values())
    if is_typeddict(hint):
        kinds = _hints(hint)
        return isinstance(value, dict) and all(_fits(value[key], kind) for key, kind in kinds.items() if key in value)
    if origin is list:
        return isinstance(value, list) and all(_fits(entry, arguments[0]) for entry in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value is None if hint is type(None) else type(value) is hint
