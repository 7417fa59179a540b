"""Typed loading of yaml: converts a mapping to a dataclass and rejects anything invalid with a one-sentence error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import TYPE_CHECKING, TypeVar, get_args, get_origin, get_type_hints

from rgpo.errors import ConfigError, close_matches, printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Made = TypeVar("_Made", bound="DataclassInstance")
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a mapping"}


def fill(kind: type[_Made], node: object, where: str) -> _Made:
    """Build a dataclass from a mapping; `where` (file, and key inside it) is the start of every error message.

    Raises: ConfigError if the node is not a mapping, a key is unknown or missing, or a value has the wrong type or is invalid.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}={shown(node)}: give a mapping with the keys {', '.join(_hints(kind))}")
    hints, known = _hints(kind), fields(kind)
    for key in node:
        if key not in hints:
            near = close_matches(str(key), hints) or f" The keys are {', '.join(hints)}."
            raise ConfigError(f"{where}{key}={shown(node[key])}: there is no such key.{near}")
    values: dict[str, object] = {}
    for field in known:
        if field.name in node:
            values[field.name] = _value(node[field.name], hints[field.name], f"{where}{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}{field.name}=null: it is missing; add it")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def shown(value: object) -> str:
    """A yaml value as text for an error message."""
    return "null" if value is None else printable(str(value), 80)


def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)


def _value(value: object, hint: object, where: str) -> object:
    """The value, with an integer converted to float where a float is expected."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is UnionType:
        if value is None and type(None) in arguments:
            return None
        return _value(value, next(a for a in arguments if a is not type(None)), where)
    if origin is list and isinstance(value, list):
        return [_value(entry, arguments[0], where) for entry in value]
    if origin is dict and isinstance(value, dict):
        return {_value(key, arguments[0], where): _value(entry, arguments[1], f"{where}.{key}") for key, entry in value.items()}
    if hint is object:
        return value
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not -sys.float_info.max <= value <= sys.float_info.max:
            raise ConfigError(f"{where}={shown(value)}: give a finite number")
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    kind = origin or hint
    expected = _NAMES.get(kind, "another value") if isinstance(kind, type) else "another value"
    raise ConfigError(f"{where}={shown(value)}: give {expected}")
