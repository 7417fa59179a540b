"""Ranges of dataclass fields, declared beside each field and checked at construction.

    sharpness: float = field(metadata=POSITIVE)

Gates check the ranges of their own fields; any other dataclass calls ``check_fields(self, "penalty")`` in ``__post_init__``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from rgpo.errors import require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_KEY = "range"  # of a field's metadata


@dataclass(frozen=True)
class Range:
    """The values that a field accepts."""

    contains: Callable[[Any], bool]
    requirement: str  # the end of the message "key=value: requirement"

    def check(self, key: str, value: object) -> None:
        """Raises: ConfigError if the range does not contain value, or cannot be compared with it."""
        try:
            ok = self.contains(value)
        except TypeError:
            ok = False
        require(ok, key, value, self.requirement)


def accept(contains: Callable[[Any], bool], requirement: str) -> dict[str, Range]:
    """Metadata of a field whose values satisfy ``contains``."""
    return {_KEY: Range(contains, requirement)}


def one_of(*names: str) -> dict[str, Range]:
    """Metadata of a field that takes one of several names."""
    return accept(lambda value: value in names, f"must be {', '.join(names[:-1])} or {names[-1]}.")


POSITIVE = accept(lambda x: 0 < x < math.inf, "must be a positive, finite number.")
ABOVE_ONE = accept(lambda x: 1 < x < math.inf, "must be a finite number above 1.")
FRACTION = accept(lambda x: 0 < x < 1, "must lie strictly between 0 and 1.")
UNIT_INTERVAL = accept(lambda x: 0 <= x <= 1, "must lie in [0, 1].")


def declared_range(declared: Field[Any]) -> Range | None:
    """The range of a field, None if it declares none."""
    found: Range | None = declared.metadata.get(_KEY)
    return found


def check_fields(instance: DataclassInstance, group: str) -> None:
    """Check every declared range; keys of messages are ``group.field``.

    Raises: ConfigError if a value lies outside the range of its field.
    """
    for declared in fields(instance):
        if (allowed := declared_range(declared)) is not None:
            allowed.check(f"{group}.{declared.name}", getattr(instance, declared.name))
