"""Crash-safe metrics: rows are written to numbered part files, each atomically, which are joined into one file at the end.

Flushed rows can be read after a kill with `pandas.read_parquet(run_folder / "metrics")`, and after the run with
`pandas.read_parquet(run_folder / "metrics.parquet")`. No file is removed until its rows have been read back from another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rgpo import atomic
from rgpo.errors import ConfigError, close_matches
from rgpo.runtime import manifest, reader
from rgpo.runtime.parts import KINDS, PartFiles, Row, part_files, storing, write_atomically
from rgpo.runtime.schema import COUNTERS, GLOSSARY, PROVENANCE, SAMPLES, Metric, is_list

ARROW_TYPES = {"text": pa.string(), "whole": pa.int64(), "number": pa.float32(), "yes/no": pa.bool_()}


def number(metrics: Mapping[str, float | list[float]], name: str, default: float = math.nan) -> float:
    """The value of a scalar metric; default if it was not measured or is a list."""
    value = metrics.get(name, default)
    return default if isinstance(value, list) else value


def arrow_schema(metadata: Mapping[str, str], glossary: Mapping[str, Metric] = GLOSSARY) -> pa.Schema:
    """The schema of a metrics file with all possible columns and the file's metadata (config, versions)."""
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [pa.field(name, text) for name in PROVENANCE] + [pa.field(name, pa.int64()) for name in COUNTERS]
    fields += [pa.field(name, pa.list_(pa.float32()) if is_list(name) else pa.float32()) for name in glossary]
    return pa.schema(fields, metadata=dict(metadata))


def table_schema(columns: Mapping[str, str], metadata: Mapping[str, str]) -> pa.Schema:
    """The schema of a file with columns name -> text, whole, number or yes/no."""
    return pa.schema([pa.field(name, ARROW_TYPES[kind]) for name, kind in columns.items()], metadata=dict(metadata))


def last_attempt(run_dir: Path, joined: bool) -> int:
    """The highest attempt in the names of part files and, if joined, in the rows of metrics.parquet; 0 if there are none."""
    names = [manifest.PART.fullmatch(part.name) for kind in KINDS for part in part_files(run_dir / kind)]
    found = [int(name[1]) for name in names if name]
    if joined:
        with suppress(reader.Unreadable), reader.parquet(run_dir / "metrics.parquet") as file:
            found += [x for x in file.read(columns=["attempt"])["attempt"].unique().to_pylist() if isinstance(x, int)]
    return max(found, default=0)


def has_rows(run_dir: Path, num_iterations: int) -> bool:
    """True if metrics.parquet has a row for every iteration."""
    try:
        with reader.parquet(run_dir / "metrics.parquet") as file:
            found = file.read(columns=["iteration"])["iteration"].unique().to_pylist()
    except reader.Unreadable:
        return False
    return len(found) >= num_iterations and set(range(1, num_iterations + 1)) <= set(found)


def remove_parts(run_dir: Path) -> None:
    """Delete the part files; call this only after manifest.json and state.json record completion."""
    for kind in KINDS:
        folder = run_dir / kind
        if folder.is_symlink():
            atomic.remove([folder])  # the link, not its target
        elif folder.is_dir():
            atomic.remove(part_files(folder))
            atomic.remove_temporary(folder)
            atomic.remove_folder(folder)


def measured(run_dir: Path, name: str, iteration: int) -> list[float]:
    """A metric's measured values up to an iteration, from a finished or running run; the latest attempt counts."""
    whole = run_dir / "metrics.parquet"
    found: dict[int, tuple[int, float]] = {}  # iteration -> attempt, value
    for path in [whole] if whole.exists() else part_files(run_dir / "metrics"):
        table = pq.read_table(path)
        if name in table.column_names:
            columns = (table[key].to_pylist() for key in ("iteration", "attempt", name))
            for at, attempt, value in zip(*columns, strict=True):
                if at <= iteration and attempt >= found.get(at, (0, 0.0))[0]:
                    found[at] = attempt, value
    values = [found[at][1] for at in sorted(found)]
    return [value for value in values if value is not None and not math.isnan(value)]


class MetricsWriter:
    """Writes a run's metrics.parquet, with one row per iteration, and samples.parquet and rollouts.parquet if the task has them.

    rollout_columns: {} if the run writes no rollouts.
    """

    def __init__(
        self,
        run_dir: Path,
        provenance: Mapping[str, str],
        seed: int,
        attempt: int,
        metadata: Mapping[str, str],
        glossary: Mapping[str, Metric] = GLOSSARY,
        sample_columns: Mapping[str, str] = SAMPLES,
        rollout_columns: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.glossary = glossary
        self._constants = {**provenance, "seed": seed, "attempt": attempt}
        schema = arrow_schema(metadata, glossary)
        self.metrics = PartFiles(run_dir, "metrics", schema, ("iteration",), attempt)
        texts = {"samples": (sample_columns, "prompt_id"), "rollouts": (rollout_columns or {}, "completion_id")}
        self.texts = {
            kind: PartFiles(run_dir, kind, table_schema(columns, metadata), ("iteration", key), attempt)
            for kind, (columns, key) in texts.items()
            if columns
        }
        self.damage = self.metrics.damage + [why for table in self.texts.values() for why in table.damage]

    def lost(self, iteration: int, num_samples: int) -> list[str]:
        """One clause for each kind of rows (metrics, samples) that are missing up to an iteration's checkpoint."""
        found = {int(str(key)) for (key,) in self.metrics.read_until(iteration)}
        missing = [i for i in range(1, iteration + 1) if i not in found]
        lost = num_samples - sum(len(table.read_until(iteration)) for table in self.texts.values())
        word = "iteration" if len(missing) == 1 else "iterations"
        clauses = [f"the metrics of {word} {_ranges(missing)} are missing"] if missing else []
        return clauses + ([f"{lost} of {num_samples} samples are missing"] if lost > 0 else [])

    @property
    def num_earlier(self) -> int:
        """Number of rows from earlier attempts that have been neither resumed from nor measured again."""
        return self.metrics.num_later

    def resume(self, iteration: int) -> None:
        """Continue after an iteration (0 for a new run); must be called before rows are added."""
        self.metrics.resume(iteration)
        for table in self.texts.values():
            table.resume(iteration)

    def log(self, iteration: int, env_steps: int, metrics: Mapping[str, float | list[float]]) -> None:
        """Add one row.

        Raises: ConfigError if a metric is not in the glossary, or is a list although its name does not begin with epoch/.
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
        """Add completions of held-out prompts; those of the reference policy get iteration 0."""
        for sample in samples:
            self._add("samples", sample, 0 if sample["reference"] else iteration)

    def log_rollout(self, iteration: int, rows: Iterable[Row]) -> None:
        """Add completions from the rollout."""
        for row in rows:
            self._add("rollouts", row, iteration)

    def _add(self, kind: str, given: Row, iteration: int) -> None:
        table, row = self.texts[kind], {**self._constants, **given, "iteration": iteration}
        table.add({name: row[name] for name in table.schema.names})

    @property
    def num_samples(self) -> int:
        """Number of rows of samples and rollouts so far."""
        return sum(len(table.keys) for table in self.texts.values())

    def flush(self) -> None:
        """Write all buffered rows."""
        self.metrics.flush()
        for table in self.texts.values():
            table.flush()

    def finish(self) -> Path:
        """Flush and join all parts into one file per kind; columns of metrics that were never measured are dropped.

        Raises: StorageError if rows were lost or a file cannot be written.
        """
        table, texts = self.metrics.join(), [(part, part.join()) for part in self.texts.values()]
        measured = [name for name in table.column_names if name not in self.glossary or _has_value(table[name])]
        with storing(self.run_dir):
            write_atomically(table.select(measured), self.metrics.path, self.metrics.key)
            for part, rows in texts:
                if len(rows):
                    write_atomically(rows, part.path, part.key)
        return self.metrics.path


def _ranges(numbers: Sequence[int]) -> str:
    """Format sorted numbers as "1 to 3, 7"."""
    starts = [x for i, x in enumerate(numbers) if i == 0 or numbers[i - 1] != x - 1]
    ends = [x for i, x in enumerate(numbers) if i + 1 == len(numbers) or numbers[i + 1] != x + 1]
    return ", ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))


def _has_value(column: pa.ChunkedArray) -> bool:
    if pa.types.is_list(column.type):
        return bool(column.null_count < len(column))
    return any(x is not None and not math.isnan(x) for x in column.to_pylist())
