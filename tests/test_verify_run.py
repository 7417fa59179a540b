"""Repeating a run: equal at its commit, different where a row was changed, and what cannot be repeated is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.keep import keep
from rgpo.report.cli import main
from rgpo.report.read.rerun import difference

ROOT = Path(__file__).parents[1]
WORDS = ["task=cartpole", "algo=ppo", "num_iterations=2", "task.num_steps=32", "update.compile=false", "gradvar_every=0"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, with the commit of this checkout in its provenance."""
    results = tmp_path_factory.mktemp("repeated") / "results"
    subprocess.run([sys.executable, "-m", "rgpo.cli.run", *WORDS, f"results_dir={results}"], cwd=ROOT, check=True)
    (folder,) = results.glob("*/*")
    facts = json.loads((folder / "provenance.json").read_text())
    assert len(facts["code"]) == 12
    (folder / "provenance.json").write_text(json.dumps(facts | {"dirty": False}))
    return folder


def test_a_run_is_equal_at_its_commit_and_differs_where_a_row_was_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert ": equal, 2 iterations, repeated at its commit" in capsys.readouterr().out
    table = pq.read_table(run / "metrics.parquet")
    assert table.schema.metadata[b"code"] and table.schema.metadata[b"config"]
    place = table.schema.get_field_index("kl/old_exact")
    changed = table["kl/old_exact"].to_numpy() * np.array([1, 1.001], np.float32)
    pq.write_table(table.set_column(place, table.schema.field(place), [changed]), run / "metrics.parquet")
    assert main(["verify", str(run), "at=head"]) == 1
    said = capsys.readouterr()
    assert "different from iteration 2 on (kl/old_exact), repeated with the present code" in said.out
    assert "the repetition has other numbers" in said.err


def test_columns_that_nobody_reads_can_be_left_out_and_the_others_are_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "seed=2", f"results_dir={tmp_path}/results"]
    subprocess.run([sys.executable, "-m", "rgpo.cli.run", *words], cwd=ROOT, check=True)
    (whole,) = tmp_path.glob("results/*/*")
    kept = tmp_path / "kept" / whole.name
    assert keep(whole, kept) and not keep(whole, kept)
    before, after = pq.read_table(whole / "metrics.parquet"), pq.read_table(kept / "metrics.parquet")
    assert str(before.select(after.column_names).to_pydict()) == str(after.to_pydict())
    assert "gate/pos_mean" not in after.column_names
    assert after.nbytes < 0.7 * before.nbytes and not keep(kept, kept)
    left_out = json.loads(after.schema.metadata[b"left_out"])
    assert {*left_out, *after.column_names} == {*before.column_names}
    assert main(["verify", str(kept), "at=head"]) == 0
    said = capsys.readouterr()
    assert ": equal, 2 iterations" in said.out
    assert f"; {len(left_out)} columns that the stored rows leave out were not compared" in said.out
    pq.write_table(after.drop_columns(["kl/old_exact"]), kept / "metrics.parquet")  # not among those that it names
    assert main(["verify", str(kept), "at=head"]) == 1
    assert "different, since only one of the two has kl/old_exact" in capsys.readouterr().out


def test_what_cannot_be_repeated_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads((run / "provenance.json").read_text())
    folder = tmp_path / "a-b-s1-00000000"
    folder.mkdir()
    for name in ("metrics.parquet", "config.yaml"):
        (folder / name).write_bytes((run / name).read_bytes())
    cases = [
        ({"dirty": True}, [], "its code has uncommitted changes; give at=head"),
        ({"commit": None}, [], "its code has no commit; give at=head"),
        ({"commit": "f" * 40}, [], "its commit ffffffffff cannot be extracted"),
        ({"command": "rm -rf /"}, [], "provenance.json has no rgpo-run command"),
        ({}, ["at=noon"], "at=noon: give commit"),
        ({}, ["out=x"], "verify=out=x: it reads one run's folder, at= and record="),
    ]
    for change, words, sentence in cases:
        (folder / "provenance.json").write_text(json.dumps(facts | change))
        assert main(["verify", str(folder), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "nothing")]) == 2
    (folder / "config.yaml").write_text((run / "config.yaml").read_text().replace("lr: ", "lr: 1"))
    assert main(["verify", str(folder)]) == 2
    assert "config.yaml is not the configuration that its rows were measured with" in capsys.readouterr().err


def test_differences_are_found_where_they_begin() -> None:
    first = {"iteration": np.arange(1.0, 5), "a": np.array([1.0, np.nan, np.inf, 4.0]), "epoch/b": np.ones((4, 2))}
    assert difference(first, first)[:2] == (0.0, 0)
    close = first | {"a": first["a"] * (1 + 1e-7)}
    assert difference(first, close).iteration == 0 and 0 < difference(first, close).largest < 1e-6
    later = first | {"epoch/b": np.array([[1.0, 1], [1, 1], [1, 2], [1, 1]])}
    assert difference(first, later)[1:3] == (3, ("epoch/b",))
    assert difference(first, first | {"a": np.array([1.0, 2.0, np.inf, 4.0])}).iteration == 2
    assert difference(first, {name: column[:3] for name, column in first.items()}).iteration == 4
    assert difference(first, {"iteration": first["iteration"]}).lacking == ("a", "epoch/b")
