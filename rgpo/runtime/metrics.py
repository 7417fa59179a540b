"""Crash-safe metrics: rows go to numbered part files, each replaced atomically, which are joined into one file at the end.

Everything flushed can be read after a kill with `pandas.read_parquet(run_folder / "metrics")`, and after the run with
`pandas.read_parquet(run_folder / "metrics.parquet")`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgpo.atomic import replacing
from rgpo.errors import ConfigError, close_matches
from rgpo.runtime.schema import COUNTERS, GLOSSARY, PROVENANCE, SAMPLES, Metric, is_list

FLUSH_ROWS = 1_000
FLUSH_SECONDS = 30.0
ARROW_TYPES = {"text": pa.string(), "whole": pa.int64(), "number": pa.float32(), "yes/no": pa.bool_()}
Row = Mapping[str, object]


def number(metrics: Mapping[str, float | list[float]], name: str, default: float = math.nan) -> float:
    """A metric that is one number per iteration; default if it was not measured."""
    value = metrics.get(name, default)
    return default if isinstance(value, list) else value


def arrow_schema(metadata: Mapping[str, str], glossary: Mapping[str, Metric] = GLOSSARY) -> pa.Schema:
    """Every column of a metrics file, with file metadata (config, versions)."""
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [pa.field(name, text) for name in PROVENANCE] + [pa.field(name, pa.int64()) for name in COUNTERS]
    fields += [pa.field(name, pa.list_(pa.float32()) if is_list(name) else pa.float32()) for name in glossary]
    return pa.schema(fields, metadata=dict(metadata))


def write_atomically(table: pa.Table, path: Path) -> None:
    """Replace a parquet file atomically."""
    floats = [f.name for f in table.schema if pa.types.is_float32(f.type)]
    words = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd", use_dictionary=words, use_byte_stream_split=floats)


class PartFiles:
    """Rows of one schema in numbered part files. In a folder with earlier parts, rows after iteration keep_until are dropped."""

    def __init__(self, folder: Path, schema: pa.Schema, key: tuple[str, ...], attempt: int, keep_until: int) -> None:
        self.folder, self.schema, self.key = folder, schema, key
        self.rows: list[Row] = []
        self._attempt = attempt
        self._num_parts = 0
        self._last_flush = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._take_over(keep_until)

    def _take_over(self, keep_until: int) -> None:
        earlier = sorted(self.folder.glob("part-*.parquet"))
        if not earlier:
            return
        rows = [row for row in self._read().to_pylist() if row["iteration"] <= keep_until]
        if rows:
            self._write(pa.Table.from_pylist(rows, schema=self.schema))
        for part in earlier:
            part.unlink()

    def _read(self) -> pa.Table:
        """All parts as one table sorted by the key; of rows with equal keys, the one written last."""
        parts = [pq.read_table(part, partitioning=None) for part in sorted(self.folder.glob("part-*.parquet"))]
        if not parts:
            return self.schema.empty_table()
        table = pa.concat_tables(parts, promote_options="default").unify_dictionaries()
        keys = zip(*(table[name].to_pylist() for name in self.key), strict=True)
        place = {key: i for i, key in enumerate(keys)}
        return table.take([place[key] for key in sorted(place)]).combine_chunks()

    def add(self, row: Row) -> None:
        """Buffer a row; flush after 1,000 rows or 30 s."""
        self.rows.append(row)
        if len(self.rows) >= FLUSH_ROWS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows as a new part."""
        self._last_flush = time.monotonic()
        if self.rows:
            self._write(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows = []

    def _write(self, table: pa.Table) -> None:
        write_atomically(table, self.folder / f"part-{self._attempt:04d}-{self._num_parts:06d}.parquet")
        self._num_parts += 1

    def join(self) -> pa.Table:
        """Flush, and read everything back."""
        self.flush()
        return self._read().replace_schema_metadata(self.schema.metadata)


class MetricsWriter:
    """One run's metrics.parquet with one row per iteration, and samples.parquet for tasks that provide samples."""

    def __init__(
        self,
        run_dir: Path,
        provenance: Mapping[str, str],
        seed: int,
        attempt: int,
        keep_until: int,
        metadata: Mapping[str, str],
        glossary: Mapping[str, Metric] = GLOSSARY,
    ) -> None:
        self.run_dir = run_dir
        self.glossary = glossary
        self._constants = {**provenance, "seed": seed, "attempt": attempt}
        schema = arrow_schema(metadata, glossary)
        self.metrics = PartFiles(run_dir / "metrics", schema, ("iteration",), attempt, keep_until)
        columns = [pa.field(name, ARROW_TYPES[kind]) for name, kind in SAMPLES.items()]
        keys = ("iteration", "prompt_id")
        self.samples = PartFiles(run_dir / "samples", pa.schema(columns, metadata=dict(metadata)), keys, attempt, keep_until)

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float | list[float]]) -> None:
        """Add one row.

        Raises: ConfigError for a metric that the glossary does not describe, or a list where a number belongs.
        """
        for name, value in metrics.items():
            if name not in self.glossary:
                near = close_matches(name, self.glossary)
                raise ConfigError(f"metric {name}: has no unit and meaning; declare them under metrics in your yaml.{near}")
            if isinstance(value, list) and not is_list(name):
                raise ConfigError(f"metric {name}: has one value per epoch; begin its name with epoch/, or return one number.")
        row = {name: math.nan for name in self.glossary if not is_list(name)}
        self.metrics.add({**row, **metrics, **self._constants, "iteration": iteration, "env_steps": env_steps})

    def log_samples(self, iteration: int, samples: Iterable[Row]) -> None:
        """Add completions; those of the reference policy get iteration 0."""
        for sample in samples:
            row = {**self._constants, **sample, "iteration": 0 if sample["reference"] else iteration}
            self.samples.add({name: row[name] for name in SAMPLES})

    def flush(self) -> None:
        """Write all buffered rows."""
        self.metrics.flush()
        self.samples.flush()

    def finish(self) -> Path:
        """Flush, and join all parts into metrics.parquet without the columns that were never measured."""
        table = self.metrics.join()
        measured = [name for name in table.column_names if name not in self.glossary or _has_value(table[name])]
        path = self.run_dir / "metrics.parquet"
        write_atomically(table.select(measured), path)
        samples = self.samples.join()
        if len(samples):
            write_atomically(samples, self.run_dir / "samples.parquet")
        return path

    def remove_parts(self) -> None:
        """Delete the part files; only once state.json records completion, because until then a resumed run joins them again."""
        for parts in (self.metrics, self.samples):
            shutil.rmtree(parts.folder)


def _has_value(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        return bool(column.null_count < len(column))
    return any(x is not None and not math.isnan(x) for x in column.to_pylist())
