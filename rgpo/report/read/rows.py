"""Parquet to arrays: the rows of a finished or running run, one per iteration, and the records of small tables."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime.schema import RENAMED_COLUMNS, is_list

INDEX_COLUMNS = ("attempt", "iteration", "env_steps")
WORDS = ("scale",)  # constant text columns that the report reads


class Unreadable(Exception):
    """A run or file that cannot be used; the text is the reason."""


class Rows(NamedTuple):
    """Columns (I,), or (I, K) under epoch/, nan where not measured; only those that the files have, by their present names."""

    columns: dict[str, Floats]
    words: dict[str, str]
    problems: list[str]


def read(folder: Path, columns: Collection[str]) -> Rows:
    """Read the rows of metrics.parquet and of the parts; the highest attempt wins where iterations overlap.

    Raises: Unreadable if there are no rows.
    """
    wanted = [*INDEX_COLUMNS, *sorted(set(columns) - set(INDEX_COLUMNS))]
    for final in (False, True):  # a second try if the runner joined the parts between listing and reading
        files = [folder / "metrics.parquet"] if (folder / "metrics.parquet").exists() else []
        files += sorted(p for p in (folder / "metrics").glob("part-*.parquet") if not p.name.startswith("."))
        words: dict[str, str] = {}
        tables, problems, vanished = [], [], False
        for path in files:
            try:
                table, found, more = _read_file(path, wanted)
                tables.append(table)
                words |= found
                problems += [f"{path.relative_to(folder)}: {problem}" for problem in more]
            except FileNotFoundError:
                vanished = True
            except (pa.ArrowException, OSError, KeyError) as error:
                problems.append(f"{path.relative_to(folder)} {reason(error)}; its rows are left out")
        if final or not vanished:
            break
    tables = [table for table in tables if len(table["iteration"])]
    if not tables:
        raise Unreadable("; ".join(problems) or "it has no metrics yet")
    return Rows(_join(tables, wanted), words, problems)


def read_records(path: Path, columns: Collection[str]) -> list[dict[str, Any]]:
    """Read a small table as one mapping column -> value per row.

    Raises: Unreadable if the file is damaged or lacks a column, FileNotFoundError if it does not exist.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            if missing:
                raise Unreadable(f"{path.name} has no column {', '.join(missing)}")
            table = file.read(columns=list(columns))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(f"{path.name} {reason(error)}") from None
    values = [table[name].to_pylist() for name in columns]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def floats(column: pa.ChunkedArray) -> Floats:
    """A numeric arrow column as (I,), nulls as nan; to_numpy and fill_null would import pandas, half a second."""
    if column.null_count:
        return np.array(column.to_pylist(), dtype=np.float64)
    return np.concatenate([np.empty(0), *(np.from_dlpack(chunk) for chunk in column.chunks if len(chunk))])


def reason(error: Exception) -> str:
    """A short predicate for a file that could not be read, such as "is missing"."""
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, KeyError):
        return str(error.args[0])
    return f"cannot be read ({' '.join(str(error).split())[:80].rstrip('. ')})"


def _read_file(path: Path, wanted: Collection[str]) -> tuple[dict[str, Floats], dict[str, str], list[str]]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        types = {field.name: field.type for field in file.schema_arrow}
        stored = _present_names(types)
        missing = set(INDEX_COLUMNS) - set(types)
        if missing:
            raise KeyError(f"has no column {', '.join(sorted(missing))}")
        there = [name for name in wanted if name in stored]
        usable = [name for name in there if _is_numeric(types[stored[name]], is_list(name))]
        unusable = [name for name in there if name not in usable]
        problems = [f"{name} is {types[stored[name]]} and not numbers; it is left out" for name in unusable]
        texts = [name for name in WORDS if name in types]
        table = file.read(columns=[*(stored[name] for name in usable), *texts], use_threads=False)
    words = {name: str(table[name][0].as_py()) for name in texts if len(table)}
    columns = {name: table[stored[name]] for name in usable}
    return {name: _padded(column) if is_list(name) else floats(column) for name, column in columns.items()}, words, problems


def _present_names(names: Collection[str]) -> dict[str, str]:
    """Present name -> name in the file, for files that may have former names of columns."""
    former = {RENAMED_COLUMNS[name]: name for name in names if name in RENAMED_COLUMNS}
    return former | {name: name for name in names if name not in RENAMED_COLUMNS}


def _is_numeric(kind: pa.DataType, in_lists: bool) -> bool:
    if in_lists:
        return bool(pa.types.is_list(kind)) and _is_numeric(kind.value_type, False)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _padded(column: pa.ChunkedArray) -> Floats:
    """Lists of different lengths -> (I, K), nan where a list is shorter."""
    lists = column.combine_chunks()
    lengths = np.nan_to_num(floats(pc.list_value_length(pa.chunked_array([lists])))).astype(int)
    entries, width = floats(pa.chunked_array([lists.flatten()])), lengths.max(initial=0)
    if len(entries) == len(lengths) * width:  # all of equal length, unless runs of two kinds share a file
        return entries.reshape(len(lengths), width)
    padded = np.full((len(lengths), width), np.nan)
    padded[np.arange(width) < lengths[:, None]] = entries
    return padded


def _join(tables: list[dict[str, Floats]], wanted: list[str]) -> dict[str, Floats]:
    present = {name for table in tables for name in table}
    lengths = [len(table["iteration"]) for table in tables]
    joined = {name: _stack([t.get(name) for t in tables], lengths) for name in wanted if name in present}
    iteration = joined["iteration"]
    if len(tables) > 1 or np.any(iteration[1:] <= iteration[:-1]):
        order = np.lexsort((joined["attempt"], iteration))
        last = np.append(iteration[order][1:] != iteration[order][:-1], True)
        joined = {name: values[order[last]] for name, values in joined.items()}
    return joined


def _stack(parts: list[Floats | None], lengths: list[int]) -> Floats:
    """Join one column of several files; nan where a file has no such column or shorter lists."""
    if len(parts) == 1 and parts[0] is not None:
        return parts[0]
    width = max((part.shape[1] for part in parts if part is not None and part.ndim == 2), default=0)
    shape = (sum(lengths), width) if width else (sum(lengths),)
    joined, start = np.full(shape, np.nan), 0
    for part, length in zip(parts, lengths, strict=True):
        if part is not None and part.ndim == 2:
            joined[start : start + length, : part.shape[1]] = part
        elif part is not None:
            joined[start : start + length] = part
        start += length
    return joined
