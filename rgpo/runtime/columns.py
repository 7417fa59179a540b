"""Build Arrow columns from raw buffers: pyarrow's own conversion imports pandas, which costs every run 0.3 CPU-s."""

from __future__ import annotations

from array import array as typed
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa

T = TypeVar("T")
NUMBERS = {pa.float32(): "f", pa.float64(): "d", pa.int32(): "i", pa.int64(): "q"}


def table(rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> pa.Table:
    """Convert rows to a table with this schema; missing entries become null.

    Raises: TypeError if a value does not match its column's type; OverflowError if an integer does not fit.
    """
    return pa.Table.from_arrays([array([row.get(field.name) for row in rows], field.type) for field in schema], schema=schema)


def array(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    """Convert values (None is null) to a column of numbers, booleans, texts, a dictionary of texts, or lists of one of these.

    Raises: as ``table``.
    """
    if pa.types.is_dictionary(kind):
        place = {value: i for i, value in enumerate(dict.fromkeys(value for value in values if value is not None))}
        indices = array([None if value is None else place[value] for value in values], kind.index_type)
        return pa.DictionaryArray.from_arrays(indices, array(list(place), kind.value_type))
    present = [value is not None for value in values]
    valid = None if all(present) else _bits(present)
    if pa.types.is_list(kind):
        lists = [list(_of((list, tuple, np.ndarray), [] if value is None else value)) for value in values]
        inner = array([x for entries in lists for x in entries], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [valid, _offsets([len(entries) for entries in lists])], children=[inner])
    if pa.types.is_string(kind):
        texts = [_of((str,), "" if value is None else value).encode() for value in values]
        data = pa.py_buffer(b"".join(texts))
        return pa.Array.from_buffers(kind, len(values), [valid, _offsets([len(text) for text in texts]), data])
    if pa.types.is_boolean(kind):
        flags = [_of((bool, np.bool_), False if value is None else value) for value in values]
        return pa.Array.from_buffers(kind, len(values), [valid, _bits(flags)])
    numbers = typed(NUMBERS[kind], [0 if value is None else cast(int, value) for value in values])
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(numbers)])


def _of(kinds: tuple[type[T], ...], value: object) -> T:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r:.80} is not {kinds[0].__name__}")
    return value


def _bits(flags: Sequence[object]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(np.array(flags, bool), bitorder="little"))


def _offsets(lengths: Sequence[int]) -> pa.Buffer:
    return pa.py_buffer(typed("i", accumulate(lengths, initial=0)))
