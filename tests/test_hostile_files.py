"""Files of every odd kind in a results folder: each costs its own run, which is named, and the report is written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures
import yaml

import rgpo
from rgpo.errors import printable
from rgpo.report.cli import main
from rgpo.runtime import manifest, reader, run_folder
from rgpo.runtime.provenance import Provenance

WORDS = ["results_dir=results", "out=report", "format=svg", "num_resamples=200", "figures=[]"]
FILES = ("config.yaml", "state.json", "provenance.json", "metrics.parquet")
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("healthy") / "results"
    for algo in ("ppo", "rgpo"):
        for seed in (1, 2, 3):
            fixtures.write_run(results, algo=algo, seed=seed, iterations=20)
    return results


@pytest.fixture
def victim(healthy: Path, here: Path) -> Path:
    """The folder of one of six healthy runs in results/."""
    shutil.copytree(healthy, here / "results")
    return next((here / "results" / "first_evidence").glob("hopper-rgpo-s2-*"))


def report(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """Run the report, which must end within seconds with this code and its page; returns what it printed to stderr."""
    began = time.monotonic()
    assert main([*WORDS, *words]) == code
    error = capsys.readouterr().err
    assert time.monotonic() - began < 20
    assert all(character.isprintable() or character == "\n" for character in error)
    assert max(map(len, error.splitlines()), default=0) < 5000
    assert Path("report/index.html").stat().st_size > 10_000
    return error


def assert_alone_left_out(error: str, victim: Path, name: str = "metrics.parquet") -> None:
    """The victim, whose file `name` is damaged, is named, with a reason, and every other run is in the tables."""
    line = next(line for line in error.splitlines() if victim.name in line)
    assert "left out" in line, error
    rows = fixtures.read_csv(Path("report/first_evidence/tables/returns.csv"))
    assert {row["label"]: row["n"] for row in rows} == {"ppo": "3", "rgpo": "2"}
    if name not in ("config.yaml", "metrics.parquet"):
        assert len(rgpo.results("results")) == 6 * 20  # which reads no other file
        return
    with pytest.warns(UserWarning, match=victim.name):
        assert set(rgpo.results("results").run_id) == {d.name for d in victim.parent.iterdir()} - {victim.name}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_yaml(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


# instead of a file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sock(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


OBJECTS: dict[str, Callable[[Path], None]] = {
    "folder": Path.mkdir,
    "fifo": fifo,
    "socket": sock,
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "tty": lambda path: path.symlink_to("/dev/ptmx"),
    "loop": lambda path: path.symlink_to(path.name),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "log": lambda path: path.symlink_to("/proc/kmsg"),
    "empty": Path.touch,
    "huge": lambda path: path.touch() or os.truncate(path, 1 << 40),
    "utf-16": lambda path: path.write_bytes("{}".encode("utf-16")),
    "latin-1": lambda path: path.write_bytes(b"name: caf\xe9"),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "list": lambda path: path.write_text("[]"),
    "number": lambda path: path.write_text("3"),
    "null": lambda path: path.write_text("null"),
    "deep": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "deep mapping": lambda path: path.write_text('{"a":' * 60_000 + "1" + "}" * 60_000),
    "dashes": lambda path: path.write_text("- " * 100_000 + "1"),
    "integer": lambda path: path.write_text(f'{{"attempt": {"9" * 5000}, "seed": {"9" * 5000}}}'),
    "bomb": lambda path: path.write_text(BOMB),
    "merge bomb": lambda path: path.write_text(BOMB.replace("[", "{<<: [").replace("]", "]}").replace("x, ", "")),
    "recursive": lambda path: path.write_text("a: &a\n  b: *a\n"),
    "object": lambda path: path.write_text("!!python/object/apply:os.system ['touch PWNED']"),
    "date": lambda path: path.write_text("seed: 2026-99-99"),
    "surrogate": lambda path: path.write_text('{"reason": "\\ud800", "command": "\\ud800", "name": "\\ud800"}'),
    "twice": lambda path: path.write_text('{"attempt": 1, "attempt": 2}'),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("name", FILES)
def test_something_else_in_place_of_a_file(name: str, kind: str, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (victim / name).unlink()
    OBJECTS[kind](victim / name)
    error = report(capsys, 1)
    assert_alone_left_out(error, victim, name)
    assert not Path("PWNED").exists()
    run_folder.status(victim)  # what a sweep and plan=true read


# wrong types

STATES: list[dict[str, Any]] = [
    {"status": 3},
    {"status": None},
    {"status": "finished"},
    {"attempt": None},
    {"attempt": "1"},
    {"attempt": True},
    {"attempt": 1.5},
    {"num_iterations": "20"},
    {"num_iterations": [20]},
    {"num_iterations": 1 << 70},
    {"num_iterations": -5},
    {"iteration": {}},
    {"reason": 3},
    {"reason": ["x"]},
    {"pid": "x"},
    {"updated": 5},
]
PROVENANCES: list[dict[str, Any]] = [
    {"attempt": None},
    {"versions": []},
    {"versions": {"torch": 2}},
    {"host": 3},
    {"host": {"cpu": []}},
    {"commit": 3},
    {"dirty": "no"},
    {"command": ["rgpo-run"]},
    {"started": None},
    {"num_threads": "1"},
    {"algorithm": [1]},
]
CONFIGS: list[dict[str, Any]] = [
    {"choices": []},
    {"choices": None},
    {"choices": {"task": 3, "algo": "ppo"}},
    {"choices": {"task": "x" * 1_000_000, "algo": "ppo"}},
    {"choices": {"task": "hopper", "algo": "p\x1b]0;title\x07"}},
    {"choices": {"task": "hopper", "algo": ""}},
    {"seed": True},
    {"seed": "1"},
    {"seed": [1]},
    {"seed": 1.5},
    {"seed": 10**30},
    {"x" * 1000: 1},
]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("state.json", changes) for changes in STATES),
        *(("provenance.json", changes) for changes in PROVENANCES),
        *(("config.yaml", changes) for changes in CONFIGS),
    ],
    ids=lambda value: value if isinstance(value, str) else printable(str(value), 40),
)
def test_entries_of_another_type(name: str, changes: dict[str, Any], victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (edit_yaml if name == "config.yaml" else edit_json)(victim / name, **changes)
    error = report(capsys, 1)
    (key,) = changes
    assert (key[:20] in error or "number of more than 64 bits" in error or "its rows are of" in error) or name == "config.yaml"
    line = next(line for line in error.splitlines() if victim.name in line)
    assert "left out" in line
    run_folder.status(victim)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": [1]},
        {"metrics": "x"},
        {"metrics": {"a/b": {"unit": "$\\frac{", "meaning": "x"}}},
        {"metrics": {"a/b": {"unit": "u" * 100_000, "meaning": "x"}}},
        {"metrics": {"a/" + "b" * 100_000: {"unit": "u", "meaning": "x"}}},
        {"gate": {"sharpness": "$\\frac{"}},
        {"gate": {"sharpness": "x" * 1_000_000}},
        {"gate": {"sharpness": {"deep": [None, float("inf"), float("nan")]}}},
        {"gate": None},
        {"task": "hopper", "final": "x", "n": 7, "kl": [], "label": "y"},
        {"update": {"lr": "²"}},
        {"advantage": {"a": {1: 2, False: 3}}},
        {"choices": {"task": "$\\frac{", "algo": "$\\frac{"}},
        {"choices": {"task": "_hidden", "algo": "_hidden"}},
        {"choices": {"task": "<script>", "algo": "</svg>\"'"}},
        {"choices": {"task": "\U0001f600 漢字", "algo": "ﷺ \u0301"}},
        {"name": "../../x", "results_dir": "/etc"},
        {"num_iterations": "x", "total_env_steps": [1]},
    ],
    ids=lambda changes: printable(str(changes), 40),
)
def test_odd_values_are_drawn_as_text(changes: dict[str, Any], victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a config can hold: the page is written, and the other runs are in it."""
    edit_yaml(victim / "config.yaml", **changes)
    code = main([*WORDS, "format=pdf", "figures=[kl,own_metrics,timing]"])
    error = capsys.readouterr().err
    assert code in (0, 1) and (code == 0) == (error == "") and "cannot be drawn" not in error and "cannot be made" not in error
    rows = fixtures.read_csv(Path("report/first_evidence/tables/returns.csv"))
    assert sum(int(row["n"]) for row in rows) >= 5
    assert Path("report/first_evidence/figures/kl.pdf").exists()


# parquet of other kinds


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


# what only resembles damage


@pytest.mark.parametrize("name", ["config.yaml", "state.json", "provenance.json"])
def test_a_byte_order_mark_and_a_link_do_no_harm(name: str, victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = victim / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real").name)
    assert report(capsys, 0) == ""


def test_queued_runs_are_queued_and_not_damaged(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (8, 9):
        folder = victim.with_name(f"hopper-ppo-s{seed}-00000000")
        folder.mkdir()
        (folder / ".lock").touch()
    assert main(WORDS) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "6 runs, 2 queued, " in shown.out
    assert "2 runs are queued." in Path("report/index.html").read_text()


def test_a_foreign_exception_costs_one_run(
    victim: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(path: Path) -> dict[str, object]:
        if path.parent == victim.relative_to(Path.cwd()):
            raise ZeroDivisionError("\x1b[2J" + 1_000_000 * "x")
        return real(path)

    real = reader.read_yaml
    monkeypatch.setattr(reader, "read_yaml", odd)
    error = report(capsys, 1)
    assert f"{victim.name}: ZeroDivisionError: \\x1b[2Jxxx" in error and "the run is left out" in error


def test_a_figure_that_fails_costs_that_figure(
    victim: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(*_: object) -> None:
        raise ValueError("bad \x07 limits")

    monkeypatch.setattr("rgpo.report.figures.kl.draw", odd)
    monkeypatch.setattr("rgpo.report.figures.timing.compute", odd)
    error = report(capsys, 1, "figures=[kl,timing]")
    assert "figures/kl: cannot be drawn (ValueError: bad \\x07 limits); it is left out" in error
    assert "figures/timing: cannot be made (ValueError: bad \\x07 limits); it is left out" in error


# digests


def test_a_finished_run_that_does_not_match_its_manifest_is_left_out(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in victim.parent.iterdir():
        manifest.write(folder, 1, 20)
    assert report(capsys, 0) == ""
    assert main(["verify"]) == 0
    assert "results: 6 runs (6 of them finished with a manifest), 0 damaged" in capsys.readouterr().out
    path = victim / "metrics.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    error = report(capsys, 1)
    assert "metrics.parquet is damaged (checksum)" in error
    assert_alone_left_out(error, victim)
    assert main(["verify"]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"rgpo-report: first_evidence/{victim.name}: metrics.parquet is damaged (checksum)\n"
    assert "1 damaged" in shown.out


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


# the reader by itself


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"attempt": NaN}', "attempt=NaN has the wrong type"),
        ('{"attempt": 1e400}', "attempt=Infinity has the wrong type"),
        ('{"attempt": 1, "attempt": 1}', "a key that occurs twice"),
        ('{"attempt": 1', "not valid JSON, line 1"),
        ("", "it is empty"),
        ('{"versions": {"torch": null}}', "versions="),
        ('{"attempt": 1} x', "not valid JSON"),
    ],
)
def test_json_is_read_strictly(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(reader.Unreadable) as caught:
        reader.read_json(tmp_path / "provenance.json", Provenance)
    assert str(caught.value).startswith("provenance.json cannot be read (") and why in str(caught.value)


def test_yaml_with_a_few_aliases_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: &x [1, .inf]\nb: *x\nc: {d: *x}\n")
    inf = float("inf")
    assert reader.read_yaml(tmp_path / "a.yaml") == {"a": [1, inf], "b": [1, inf], "c": {"d": [1, inf]}}


def test_printable() -> None:
    text = "a\x1b]0;t\x07\x9b\u202eb\nc\ud800é漢"
    assert printable(text) == "a\\x1b]0;t\\x07\\x9b\\u202eb c\\ud800é漢"
    assert printable("x" * 3_000_000) == "x" * 300 + "... (3,000,000 characters)"


def test_nothing_of_a_results_folder_is_imported(victim: Path) -> None:
    for folder in (Path(), Path("results"), victim.parent, victim):
        for name in ("numpy", "yaml", "sitecustomize", "rgpo", "matplotlib"):
            (folder / f"{name}.py").write_text("open('PWNED', 'w').close()")
    script = Path(sys.executable).with_name("rgpo-report")
    done = subprocess.run([script, *WORDS], capture_output=True, text=True)
    assert done.returncode == 0 and not Path("PWNED").exists(), done.stderr


def test_lists_that_are_too_long_are_refused_before_they_are_read(tmp_path: Path) -> None:
    entries = pa.array([np.zeros(reader.MAX_LIST * 3, dtype=np.float32)], type=pa.list_(pa.float32()))
    pq.write_table(pa.table({"iteration": [1], "epoch/kl_old_exact": entries}), tmp_path / "long.parquet", compression="zstd")
    with pytest.raises(reader.Unreadable, match="its lists are too long"), reader.parquet(tmp_path / "long.parquet"):
        pass
