"""Ranges of dataclass fields, declared beside each field and checked at construction.

    sharpness: float = field(metadata=POSITIVE)

Gates check the ranges of their own fields; any other dataclass calls ``check_fields(self, "penalty")`` in ``__post_init__``.
Every number, with or without a range, must be 0 or have a magnitude from 1e-30 to 1e30, so that neither it nor its products with
ordinary numbers underflow or overflow in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from rgpo.errors import require

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SMALLEST, LARGEST = 1e-30, 1e30
MANY = 100_000_000  # upper limit on the samples, tokens or steps in a rollout of one process
_KEY = "range"  # in a field's metadata


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


def or_null(metadata: dict[str, Range]) -> dict[str, Range]:
    """Metadata of a field that may also be null."""
    found = metadata[_KEY]
    requirement = found.requirement.replace("must be", "must be null or", 1)
    return accept(lambda value: value is None or found.contains(value), requirement)


def one_of(*names: object) -> dict[str, Range]:
    """Metadata of a field that takes one of several names."""
    shown = [str(name).lower() if isinstance(name, bool) else str(name) for name in names]
    return accept(
        lambda value: any(type(value) is type(name) and value == name for name in names),
        f"must be {', '.join(shown[:-1])} or {shown[-1]}.",
    )


def count(most: int, least: int = 1) -> dict[str, Range]:
    """Metadata of a field that takes a whole number from least to most."""
    what = {0: "a whole number, not negative and", 1: "a positive whole number,"}.get(
        least, f"a whole number, at least {least} and"
    )
    return accept(
        lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x <= most, f"must be {what} at most {most}."
    )


POSITIVE = accept(lambda x: 0 < x < math.inf, "must be a positive, finite number.")
NOT_NEGATIVE = accept(lambda x: 0 <= x < math.inf, "must be a finite number, not negative.")
FINITE = accept(math.isfinite, "must be a finite number.")
ABOVE_ONE = accept(lambda x: 1 < x < math.inf, "must be a finite number above 1.")
FRACTION = accept(lambda x: 1e-6 <= x < 1, "must lie strictly between 0 and 1, and not below 1e-6.")
UNIT_INTERVAL = accept(lambda x: 0 <= x <= 1, "must lie in [0, 1].")


def declared_range(declared: Field[object]) -> Range | None:
    """The range of a field, None if it declares none."""
    found: Range | None = declared.metadata.get(_KEY)
    return found


def check_fields(instance: DataclassInstance, group: str) -> None:
    """Check every declared range and every magnitude; messages name ``group.field``, or ``field`` if group is empty.

    Raises: ConfigError if a value is outside the range of its field, or is a nonzero number of a magnitude outside
    [1e-30, 1e30], or an integer of more than 63 bits.
    """
    for declared in fields(instance):
        value = getattr(instance, declared.name, None)  # None: set after construction
        key = f"{group}.{declared.name}" if group else declared.name
        if (allowed := declared_range(declared)) is not None:
            allowed.check(key, value)
        if isinstance(value, int | float) and value != 0:
            ordinary = SMALLEST <= abs(value) <= LARGEST
            require(ordinary, key, value, f"must be 0 or of magnitude {SMALLEST:g} to {LARGEST:g}, which single precision holds.")
            long = isinstance(value, int) and abs(value) >= 1 << 63  # torch refuses it
            require(not long, key, value, f"is a whole number of over 63 bits; write it as {float(value)}.")
