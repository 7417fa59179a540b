"""Type hints of the constructors that a configuration calls, and checks of plain values against them.

A node is a mapping with a ``_target_``, from which an object is built. A hint that cannot be evaluated, such as a name that a
user's module imports under TYPE_CHECKING, accepts every value.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, TypeVar, Union, get_args, get_origin

Node = Mapping[str, object]
SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable, Collection)
MAPPINGS = (dict, Mapping)
SCALARS: dict[object, tuple[str, str]] = {  # type -> its name in messages, singular and plural
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
}


class Parameters(NamedTuple):
    """The keyword parameters of a constructor."""

    hints: Mapping[str, object]
    required: tuple[str, ...]
    open: bool  # True if it accepts any keyword or cannot be inspected


def is_node(value: object) -> TypeGuard[Node]:
    """True for a mapping with a ``_target_``."""
    return isinstance(value, Mapping) and "_target_" in value


@functools.cache
def parameters_of(target: Callable[..., object]) -> Parameters:
    """The parameters of a class or function, with evaluated type hints."""
    try:
        found = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):
        return Parameters({}, (), True)
    by_keyword = [p for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Parameters(
        {p.name: _hint(target, p) for p in by_keyword},
        tuple(p.name for p in by_keyword if p.default is p.empty),
        any(p.kind is p.VAR_KEYWORD for p in found),
    )


def _hint(target: Callable[..., object], parameter: inspect.Parameter) -> object:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return object
    module = getattr(getattr(target, "__init__", None) if isinstance(target, type) else target, "__module__", "")
    if isinstance(target, type) and is_dataclass(target):  # fields may be inherited from classes of other modules
        owner = next((base for base in target.__mro__ if parameter.name in inspect.get_annotations(base)), target)
        module = owner.__module__
    holder = types.SimpleNamespace(__annotations__={parameter.name: annotation})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[module]))[parameter.name]
    except Exception:  # evaluating a user's annotation may raise anything
        return object


def accepts(hint: object, value: object) -> bool:
    """True if a configuration value, or the object built from it, matches a type hint."""
    hint = plain_hint(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(accepts(part, value) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if hint in SCALARS:
        return _accepts_scalar(hint, value)
    kind = origin or hint
    if not isinstance(kind, type) and kind is not Callable:
        return True
    if kind in SEQUENCES:
        return isinstance(value, list) and _accepts_items(arguments, value, kind)
    if kind in MAPPINGS and not is_node(value):
        keys, values = (*arguments, object, object)[:2]
        return isinstance(value, Mapping) and all(accepts(keys, k) and accepts(values, v) for k, v in value.items())
    return kind is object or is_node(value) or (kind is Callable and isinstance(value, str))


def plain_hint(hint: object) -> object:
    """Strip InitVar, Annotated and NewType from a hint; ``object`` if it accepts everything."""
    if isinstance(hint, InitVar):
        return plain_hint(hint.type)
    if get_origin(hint) is Annotated:
        return plain_hint(get_args(hint)[0])
    if hasattr(hint, "__supertype__"):
        return plain_hint(hint.__supertype__)
    return object if hint is Any or isinstance(hint, TypeVar) else type(None) if hint is None else hint


def takes_function(hint: object) -> bool:
    """True if a parameter with this hint accepts a function but not text."""
    hint = plain_hint(hint)
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [get_origin(plain_hint(part)) or plain_hint(part) for part in parts]
    return Callable in kinds and str not in kinds and object not in kinds


def _accepts_scalar(hint: object, value: object) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    return type(value) is (str if hint is Path else hint)


def _accepts_items(arguments: tuple[object, ...], values: list[object], kind: object) -> bool:
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(arguments) == len(values) and all(map(accepts, arguments, values))
    return not arguments or all(accepts(arguments[0], value) for value in values)


def describe(hint: object, several: bool = False) -> str:
    """A hint in words, such as "a whole number or null"."""
    hint = plain_hint(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(sorted({describe(part, several) for part in arguments}))
    if origin is Literal:
        return " or ".join(shown(choice) for choice in arguments)
    if hint in SCALARS:
        return SCALARS[hint][several]
    kind = origin or hint
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"{'lists' if several else 'a list'} of {len(arguments)}: {', '.join(map(describe, arguments))}"
    if kind in SEQUENCES:
        items = f" of {describe(arguments[0], True)}" if arguments else ""
        return f"{'lists' if several else 'a list'}{items}"
    if kind in MAPPINGS:
        return "mappings" if several else "a mapping {key: value, ...}"
    if kind is Callable:
        return "functions as texts" if several else "a function, written file.py:function or module:function"
    name = getattr(kind, "__name__", str(kind))
    return f"nodes with a _target_ of type {name}" if several else f"a node with a _target_ of type {name}"


def missing_members(hint: object, value: object) -> list[str]:
    """The members of a Protocol that an object lacks; for any other class, its name if the object is not an instance."""
    parts = [plain_hint(part) for part in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))]
    classes = [part for part in parts if isinstance(part, type) and part is not object]
    if len(classes) != len(parts):
        return []
    lacking = [_lacking(part, value) for part in classes]
    return [] if [] in lacking else lacking[0]


def _lacking(kind: type, value: object) -> list[str]:
    if not getattr(kind, "_is_protocol", False):
        return [] if isinstance(value, kind) else [kind.__name__]
    bases = [base for base in kind.__mro__ if getattr(base, "_is_protocol", False)]
    names = {name for base in bases for name in (*vars(base), *inspect.get_annotations(base))}
    public = {name for name in names if not name.startswith("_")} | (names & {"__call__"})
    return sorted(public - set(dir(value)))


def shown(value: object) -> str:
    """A value in the command line's notation."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{shown(entry)}' for key, entry in value.items())}}}"
    return str(value)
