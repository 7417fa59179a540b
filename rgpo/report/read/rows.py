"""Reading parquet into arrays: the rows of a finished or running run, one per iteration, and records of small tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime import manifest, reader
from rgpo.runtime.former import RENAMED_COLUMNS
from rgpo.runtime.parts import part_files
from rgpo.runtime.reader import Missing, Unreadable
from rgpo.runtime.schema import SAMPLES, is_list

INDEX_COLUMNS = ("attempt", "iteration", "env_steps")
WORDS = ("scale",)  # constant text columns used by the report
MAX_TEXT = 64 << 20  # most characters in a small table
BATCH = 256  # rows of a small table read at a time
SAMPLES_FILE = "samples.parquet"
_KINDS = {"text": str, "whole": int, "number": float, "yes/no": bool}
SAMPLE_COLUMNS = {name: _KINDS[kind] for name, kind in SAMPLES.items()}


class Rows(NamedTuple):
    """Columns (I,), or (I, K) under epoch/, nan where not measured, under current names; only those found in the files."""

    columns: dict[str, Floats]
    words: dict[str, str]  # values of WORDS
    configs: set[str]  # the configurations stored in the files
    problems: list[str]


def read(folder: Path, columns: Collection[str]) -> Rows:
    """Read the rows of metrics.parquet and the part files; where iterations overlap, the highest attempt wins.

    Raises: Unreadable if there are no rows.
    """
    wanted = [*INDEX_COLUMNS, *sorted(set(columns) - set(INDEX_COLUMNS))]
    for final in (False, True):  # retry once, in case the runner joined the parts between listing and reading
        words: dict[str, str] = {}
        configs: set[str] = set()
        tables, problems, vanished = [], [], False
        for path in files(folder):
            place = f"{path.parent.relative_to(folder)}/" if path.parent != folder else ""
            try:
                table, found, more = _read_file(path, wanted)
                tables.append(table)
                configs |= {found.pop("config")} if "config" in found else set()
                words |= found
                problems += [f"{place}{path.name}: {problem}" for problem in more]
            except Missing:
                vanished = True
            except Unreadable as error:
                problems.append(f"{place}{error}; its rows are left out")
        if final or not vanished:
            break
    tables = [table for table in tables if len(table["iteration"])]
    if not tables:
        raise Unreadable("; ".join(problems) or "it has no metrics yet")
    return Rows(_join(tables, wanted), words, configs, problems)


def require_own(found: Rows, config: Mapping[str, object]) -> None:
    """Raises: Unreadable unless the rows were measured with this configuration, from config.yaml."""
    if not all(reader.same_identity(config, text) for text in found.configs):
        raise Unreadable("config.yaml is not the configuration that its rows were measured with")


def files(folder: Path) -> list[Path]:
    """A finished run's metrics.parquet, a running run's parts, or both if it was killed in between."""
    joined = folder / "metrics.parquet"
    return [*([joined] if joined.exists() else []), *part_files(folder / "metrics")]


def read_records(path: Path, columns: Mapping[str, type]) -> list[dict[str, Any]]:
    """Read a small table as a list of rows (column -> value); columns: name -> str, int, float or bool.

    Missing values in a float column become nan.

    Raises: Unreadable if the file is damaged or too large, or a column is missing or has another type; Missing if there is none.
    """
    found: list[dict[str, Any]] = []
    num_characters = 0
    with reader.parquet(path) as file:
        _require(path, columns, {field.name: field.type for field in file.schema_arrow})
        for batch in file.iter_batches(BATCH, columns=list(columns), use_threads=False):
            values = [batch.column(name).to_pylist() for name in columns]
            for name, column in zip(columns, values, strict=True):
                if columns[name] is not float and None in column:
                    raise Unreadable(f"{path.name}: {name} has no value in some rows")
                num_characters += sum(map(len, column)) if columns[name] is str else 0
            if num_characters > MAX_TEXT:
                raise Unreadable.file(path, "it has too much text")
            found += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    numbers = [name for name, kind in columns.items() if kind is float]
    return [row | {name: float("nan") if row[name] is None else float(row[name]) for name in numbers} for row in found]


def sample_files(folder: Path) -> list[Path]:
    """A finished run's samples.parquet, or a running run's parts."""
    joined = folder / SAMPLES_FILE
    return [joined] if joined.exists() else part_files(folder / "samples")


def read_samples(folder: Path, columns: Mapping[str, type]) -> list[dict[str, Any]]:
    """A run's completions so far; [] if there are none.

    Raises: Unreadable if a file is damaged.
    """
    if damaged := manifest.problems(folder, (SAMPLES_FILE,)):
        raise Unreadable(damaged[0])
    found: list[dict[str, Any]] = []
    for path in sample_files(folder):
        if damage := manifest.part_damage(path):
            raise Unreadable(damage)
        found += read_records(path, columns)
    return found


def floats(column: pa.ChunkedArray) -> Floats:
    """Convert a numeric arrow column to (I,), nulls to nan; to_numpy and fill_null would import pandas, which takes 0.5 s."""
    if column.null_count:
        return np.array(column.to_pylist(), dtype=np.float64)
    return np.concatenate([np.empty(0), *(np.from_dlpack(chunk) for chunk in column.chunks if len(chunk))])


def _require(path: Path, columns: Mapping[str, type], types: Mapping[str, pa.DataType]) -> None:
    """Raises: Unreadable unless the file has all columns with the right types."""
    missing = sorted(set(columns) - set(types))
    if missing:
        raise Unreadable(f"{path.name} has no column {', '.join(missing)}")
    for name, kind in columns.items():
        stored = types[name].value_type if pa.types.is_dictionary(types[name]) else types[name]
        if not _TYPES[kind](stored):
            raise Unreadable(f"{path.name}: {name} is {reader.printable(str(stored), 40)} and not {kind.__name__}")


def _read_file(path: Path, wanted: Collection[str]) -> tuple[dict[str, Floats], dict[str, str], list[str]]:
    damage = manifest.part_damage(path)
    if damage:
        raise Unreadable(damage)
    with reader.parquet(path) as file:
        types = {field.name: field.type for field in file.schema_arrow}
        stored = _present_names(types)
        missing = set(INDEX_COLUMNS) - set(types)
        if missing:
            raise Unreadable(f"{path.name} has no column {', '.join(sorted(missing))}")
        there = [name for name in wanted if name in stored]
        usable = [name for name in there if _is_numeric(types[stored[name]], is_list(name))]
        unusable = [name for name in there if name not in usable]
        kinds = {name: reader.printable(str(types[stored[name]]), 40) for name in unusable}
        problems = [f"{name} is {kinds[name]} and not numbers; it is left out" for name in unusable]
        table = file.read(columns=[stored[name] for name in usable], use_threads=False)
        words = _first_words(file, [name for name in WORDS if name in types])
        words |= {"config": (file.schema_arrow.metadata or {}).get(b"config", b"").decode(errors="replace")}
        columns = {name: table[stored[name]] for name in usable}
        found = {name: _padded(path, column) if is_list(name) else floats(column) for name, column in columns.items()}
    for name, least in zip(INDEX_COLUMNS, (0, 1, 0), strict=True):
        if name not in found or not ((found[name] >= least) & (found[name] % 1 == 0)).all():
            raise Unreadable(f"{path.name}: {name} is not a whole number from {least} in every row")
    row = found["attempt"] * 2.0**32 + found["iteration"]
    if np.any(np.diff(row) <= 0) and len(np.unique(row)) < len(row):
        raise Unreadable(f"{path.name}: an iteration has several rows of one attempt")
    return found, words, problems


def _first_words(file: pq.ParquetFile, names: list[str]) -> dict[str, str]:
    """The first entry of constant text columns."""
    batch = next(file.iter_batches(1, columns=names, use_threads=False), None) if names else None
    return {name: str(batch.column(name)[0].as_py()) for name in names} if batch is not None and len(batch) else {}


def _present_names(names: Collection[str]) -> dict[str, str]:
    """Current name -> name in the file, which may have old names."""
    former = {RENAMED_COLUMNS[name]: name for name in names if name in RENAMED_COLUMNS}
    return former | {name: name for name in names if name not in RENAMED_COLUMNS}


def _is_numeric(kind: pa.DataType, in_lists: bool) -> bool:
    if in_lists:
        return bool(pa.types.is_list(kind)) and _is_numeric(kind.value_type, False)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


_TYPES: dict[type, Callable[[pa.DataType], bool]] = {
    str: lambda kind: bool(pa.types.is_string(kind) or pa.types.is_large_string(kind)),
    int: lambda kind: bool(pa.types.is_integer(kind)),
    float: lambda kind: _is_numeric(kind, False),
    bool: lambda kind: bool(pa.types.is_boolean(kind)),
}


def _padded(path: Path, column: pa.ChunkedArray) -> Floats:
    """Convert lists of different lengths to (I, K), padded with nan.

    Raises: Unreadable if the result would be too large.
    """
    lists = column.combine_chunks()
    lengths = np.nan_to_num(floats(pc.list_value_length(pa.chunked_array([lists])))).astype(int)
    entries, width = floats(pa.chunked_array([lists.flatten()])), lengths.max(initial=0)
    if len(entries) == len(lengths) * width:  # the usual case: all lists have equal length
        return entries.reshape(len(lengths), width)
    if len(lengths) * width > reader.MAX_VALUES:
        raise Unreadable.file(path, "its lists are too long")
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
    """Concatenate a column of several files, with nan where a file lacks the column or has shorter lists."""
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
