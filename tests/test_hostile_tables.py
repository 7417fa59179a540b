"""Parquet files of every odd kind in a results folder: each costs its own run, which is named, and the report is written."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures
from hostile_reports import OBJECTS, WORDS, assert_alone_left_out, edit_json, report

import rgpo
from rgpo.report.cli import main


def columns(path: Path) -> dict[str, pa.ChunkedArray]:
    table = pq.read_table(path, partitioning=None)
    return dict(zip(table.column_names, table.columns, strict=True))


def with_column(path: Path, name: str, values: Any) -> None:
    pq.write_table(pa.table({**columns(path), name: values}), path)


TABLES: dict[str, Callable[[Path], Any]] = {
    "texts as iteration": lambda path: with_column(path, "iteration", pa.array(["x"] * 20)),
    "no iteration": lambda path: with_column(path, "iteration", pa.array([None] * 20, pa.int64())),
    "iteration 0": lambda path: with_column(path, "iteration", pa.array(range(20))),
    "negative attempt": lambda path: with_column(path, "attempt", pa.array([-1] * 20)),
    "lists as env_steps": lambda path: with_column(path, "env_steps", pa.array([[1]] * 20)),
    "structs": lambda path: with_column(path, "attempt", pa.array([{"a": 1}] * 20)),
    "zero rows": lambda path: pq.write_table(pq.read_table(path, partitioning=None).slice(0, 0), path),
    "zero columns": lambda path: pq.write_table(pa.table({}), path),
    "other columns": lambda path: pq.write_table(pa.table({"x": [1]}), path),
    "column twice": lambda path: pq.write_table(
        pa.Table.from_arrays([pa.array([1])] * 4, ["iteration", "iteration", "attempt", "env_steps"]), path
    ),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no magic": lambda path: path.write_bytes(b"XXXX" + path.read_bytes()[4:-4] + b"XXXX"),
    "no footer": lambda path: path.write_bytes(path.read_bytes()[:-8] + b"\xff\xff\xff\x7fPAR1"),
    "feather": lambda path: pa.ipc.new_file(str(path), pa.schema([("iteration", pa.int64())])).close(),
    "many rows": lambda path: claim_rows(path, 1 << 40),
}


def claim_rows(path: Path, num_rows: int) -> None:
    """Change num_rows in a file's footer: the one varint after its schema and those of its row groups."""
    table = pa.table({name: pa.array([0], pa.int64()) for name in ("attempt", "iteration", "env_steps")})
    sizes = {}
    for count in (77, 78):
        pq.write_table(pa.concat_tables([table] * count).combine_chunks(), path)
        sizes[count] = path.read_bytes()
    footer = bytearray(sizes[77])
    start = len(footer) - 8 - int.from_bytes(footer[-8:-4], "little")
    place = footer.index(bytes([0x16, 2 * 77 & 0x7F | 0x80, 1]), start)  # field num_rows, an i64 in zigzag
    value, varint = 2 * num_rows, bytearray([0x16])
    while value >= 0x80:
        varint.append(value & 0x7F | 0x80)
        value >>= 7
    varint.append(value)
    footer[place : place + 3] = varint
    footer[-8:-4] = (len(footer) - 8 - start).to_bytes(4, "little")
    path.write_bytes(footer)


@pytest.mark.parametrize("kind", TABLES)
def test_parquet_of_another_kind(kind: str, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TABLES[kind](victim / "metrics.parquet")
    assert_alone_left_out(report(capsys, 1), victim)
    with pytest.raises(rgpo.ConfigError, match=victim.name):
        _ = rgpo.load(victim).metrics


def test_rows_of_iterations_that_a_run_does_not_have(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_column(victim / "metrics.parquet", "iteration", pa.array([i * 10**17 for i in range(1, 21)]))
    assert "its rows are of iterations 1e+17 to 2e+18, but it has 20; the run is left out" in report(capsys, 1)


METRICS = [
    pa.array(["x"] * 20),
    pa.array([[1.0]] * 20),
    pa.array([{"a": 1}] * 20),
    pa.array([b"x"] * 20),
    pa.array([True] * 20),
    pa.array([None] * 20),
    pa.array([2**62] * 20),
    pa.array([1e308] * 20),
    pa.array([-1e308, 1e308] * 10),
    pa.array([float("inf"), float("-inf")] * 10),
    pa.array([float("nan")] * 20),
    pa.array([0.0] * 20),
    pa.array([5e-324] * 20),
    pa.array(["x"] * 20).dictionary_encode(),
    pa.array([1] * 20, pa.decimal128(5)),
    pa.array([1] * 20, pa.timestamp("s")),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # overflow of means
def test_metrics_of_another_kind_cost_no_other_run(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 runs with one odd column each, beside the healthy ones."""
    names = ("kl/old_exact", "return/train_mean", "epoch/kl_old_exact", "time/collect_s")
    for seed, (name, values) in enumerate(product(names, METRICS), start=100):
        folder = fixtures.write_run(Path("results"), algo="rgpo", seed=seed, iterations=20)
        with_column(folder / "metrics.parquet", name, values)
    code = main([*WORDS, "figures=[learning_curves,kl,spikes,epoch_drift,profiles,timing]"])
    error = capsys.readouterr().err
    assert code == 1 and "kl/old_exact is string and not numbers; it is left out" in error
    rows = fixtures.read_csv(Path("report/first_evidence/tables/returns.csv"))
    assert {row["label"]: row["n"] for row in rows}["ppo"] == "3"
    assert Path("report/first_evidence/figures/kl.svg").exists() and "Traceback" not in error


def test_a_list_that_expands_to_terabytes_is_refused(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = pa.array([[0.0] * 2_000_000, *[[0.0]] * 19])
    table = pa.table({**columns(victim / "metrics.parquet"), "epoch/kl_old_exact": lists})
    many = pa.concat_tables([table, *[table.slice(1)] * 10])
    numbers = pa.array(range(1, len(many) + 1))
    pq.write_table(many.set_column(many.column_names.index("iteration"), "iteration", numbers), victim / "metrics.parquet")
    edit_json(victim / "state.json", num_iterations=len(many))
    assert "its lists are too long" in report(capsys, 1, "figures=[epoch_drift]")


@pytest.mark.parametrize("name", ["bench/control.parquet", "bench/language.parquet", "theory/verdicts.parquet", "gates.parquet"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "zero", "empty", "huge", "random", "list"])
def test_other_tables_of_a_results_folder(name: str, kind: str, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("results") / name
    path.parent.mkdir(exist_ok=True)
    OBJECTS[kind](path)
    error = report(capsys, 1, "figures=[gates,speed]")
    assert path.name in error
    assert sum(int(row["n"]) for row in fixtures.read_csv(Path("report/first_evidence/tables/returns.csv"))) == 6


def test_no_flipped_bit_of_a_table_is_shown_as_a_number(victim: Path) -> None:
    """Without a manifest: the checksums of pages, or what cannot be parsed; a flip may also hit what nobody reads."""
    path = victim / "metrics.parquet"
    pq.write_table(pq.read_table(path, partitioning=None), path, write_page_checksum=True, compression="zstd")
    data, rng = path.read_bytes(), np.random.default_rng(0)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    before = rgpo.load(victim).metrics
    caught = 0
    for place in rng.choice(8 * footer, 150, replace=False):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            after = rgpo.load(victim).metrics
        except rgpo.ConfigError:
            caught += 1
        else:
            assert after.astype(str).equals(before.astype(str))
    assert caught > 100
