"""Files of every odd kind in a results folder: each costs its own run, which is named, and the report is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import report_fixtures as fixtures
import yaml
from hostile_reports import OBJECTS, WORDS, assert_alone_left_out, edit_json, report

from rgpo.errors import printable
from rgpo.report.cli import main
from rgpo.runtime import manifest, reader, run_folder

FILES = ("config.yaml", "state.json", "provenance.json", "metrics.parquet")


def edit_yaml(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


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


def test_a_run_that_has_begun_and_has_no_rows_is_queued(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = victim.with_name("hopper-ppo-s8-00000000")
    with run_folder.lock(folder):
        run_folder.write_state(folder, status="running", attempt=1, iteration=0, num_iterations=0)
        for name in ("config.yaml", "provenance.json"):
            shutil.copy(victim / name, folder)
        assert main(WORDS) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "6 runs, 1 queued, " in shown.out
    assert "it has no metrics yet" in report(capsys, 1)  # its process has ended


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


def test_nothing_of_a_results_folder_is_imported(victim: Path) -> None:
    for folder in (Path(), Path("results"), victim.parent, victim):
        for name in ("numpy", "yaml", "sitecustomize", "rgpo", "matplotlib"):
            (folder / f"{name}.py").write_text("open('PWNED', 'w').close()")
    script = Path(sys.executable).with_name("rgpo-report")
    done = subprocess.run([script, *WORDS], capture_output=True, text=True)
    assert done.returncode == 0 and not Path("PWNED").exists(), done.stderr
