"""Crash-safe metrics: rows to numbered part files, each written aside and renamed, joined into one file at the end.

Whatever was flushed can be read after a kill with `pandas.read_parquet(run_folder / "metrics")`, and after the run with
`pandas.read_parquet(run_folder / "metrics.parquet")`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rgpo.errors import close_matches
from rgpo.schema import COUNTERS, GLOSSARY, PROVENANCE, is_list

FLUSH_ROWS = 1_000
FLUSH_SECONDS = 30.0


def arrow_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Every column of the glossary, with file metadata (config, versions)."""
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [pa.field(name, text) for name in PROVENANCE] + [pa.field(name, pa.int64()) for name in COUNTERS]
    fields += [pa.field(name, pa.list_(pa.float32()) if is_list(name) else pa.float32()) for name in GLOSSARY]
    return pa.schema(fields, metadata=dict(metadata))


def write_atomically(table: pa.Table, path: Path) -> None:
    """Write a parquet file aside and rename it, so that a reader sees all of it or nothing."""
    aside = path.with_name(f".{path.name}.writing")
    floats = [f.name for f in table.schema if pa.types.is_float32(f.type)]
    words = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
    try:
        pq.write_table(table, aside, compression="zstd", use_dictionary=words, use_byte_stream_split=floats)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


class MetricsWriter:
    """One run's sink. Starting on a folder with earlier parts keeps their rows up to `keep_until` and drops the rest."""

    def __init__(
        self,
        run_dir: Path,
        provenance: Mapping[str, str],
        seed: int,
        attempt: int,
        keep_until: int,
        metadata: Mapping[str, str],
    ) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "metrics"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.schema = arrow_schema(metadata)
        self._constants = {**provenance, "seed": seed, "attempt": attempt}
        self._attempt = attempt
        self._rows: list[dict[str, Any]] = []
        self._num_parts = 0
        self._last_flush = time.monotonic()
        self._take_over(keep_until)

    def _take_over(self, keep_until: int) -> None:
        earlier = sorted(self.folder.glob("part-*.parquet"))
        if not earlier:
            return
        table = pa.concat_tables([pq.read_table(part, partitioning=None) for part in earlier])
        rows = {row["iteration"]: row for row in table.to_pylist() if row["iteration"] <= keep_until}
        if rows:
            self._write(pa.Table.from_pylist([rows[i] for i in sorted(rows)], schema=self.schema))
        for part in earlier:
            part.unlink()

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, Any]) -> None:
        """Add one row. KeyError for a metric that the glossary does not describe."""
        unknown = [name for name in metrics if name not in GLOSSARY]
        if unknown:
            raise KeyError(f"metric {unknown[0]!r} is not in rgpo.schema.GLOSSARY.{close_matches(unknown[0], GLOSSARY)}")
        row = {name: math.nan for name in GLOSSARY if not is_list(name)}
        self._rows.append({**row, **metrics, **self._constants, "iteration": iteration, "env_steps": env_steps})
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows as a new part."""
        self._last_flush = time.monotonic()
        if self._rows:
            self._write(pa.Table.from_pylist(self._rows, schema=self.schema))
            self._rows = []

    def _write(self, table: pa.Table) -> None:
        write_atomically(table, self.folder / f"part-{self._attempt:04d}-{self._num_parts:06d}.parquet")
        self._num_parts += 1

    def finish(self) -> Path:
        """Flush, and join all parts into metrics.parquet without the columns that were never measured."""
        self.flush()
        parts = sorted(self.folder.glob("part-*.parquet"))
        table = pa.concat_tables([pq.read_table(part, partitioning=None) for part in parts]).unify_dictionaries()
        table = table.combine_chunks()
        measured = [name for name in table.column_names if name not in GLOSSARY or _has_value(table[name])]
        path = self.run_dir / "metrics.parquet"
        write_atomically(table.select(measured).replace_schema_metadata(self.schema.metadata), path)
        shutil.rmtree(self.folder)
        return path


def _has_value(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        return bool(column.null_count < len(column))
    return any(x is not None and not math.isnan(x) for x in column.to_pylist())
