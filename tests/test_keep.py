"""experiments.keep: completed runs are taken whole or not at all, and what is damaged is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures

from experiments import keep
from rgpo.runtime import manifest


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three finished runs with manifests; the kept ones go to kept/."""
    for seed in (1, 2, 3):
        path = (folder := fixtures.write_run(tmp_path / "made", seed=seed)) / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"gate_curve": {"weight": [[1.0], [1.0]]}}))
        manifest.write(folder, 1, 30)
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "kept")
    return tmp_path / "made"


def kept(results: Path) -> dict[str, list[str]]:
    """Seed -> files of the kept runs."""
    folders = (results.parent / "kept" / "first_evidence").iterdir()
    return {folder.name.split("-")[2]: sorted(path.name for path in folder.iterdir()) for folder in folders}


def damage(folder: Path, what: str) -> None:
    if what == "a flipped byte":
        data = bytearray((folder / "metrics.parquet").read_bytes())
        data[len(data) // 3] ^= 1
        (folder / "metrics.parquet").write_bytes(data)
    elif what == "cut short":
        whole = (folder / "metrics.parquet").read_bytes()
        (folder / "metrics.parquet").write_bytes(whole[: len(whole) // 2])
    elif what == "no state":
        (folder / "state.json").write_text("{")
    elif what == "no provenance":
        (folder / "provenance.json").unlink()
    else:
        (folder / "manifest.json").unlink()
        (folder / ("config.yaml" if what == "no YAML" else "provenance.json")).write_text("{")


@pytest.mark.parametrize("what", ["a flipped byte", "cut short", "no provenance", "no JSON", "no YAML", "no state"])
def test_a_damaged_run_is_named_and_the_others_are_taken(what: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (results / "first_evidence").glob("hopper-ppo-s2-*")
    damage(folder, what)
    for taken in (2, 0):
        assert keep.main([str(results), "first_evidence"]) == 1
        said = capsys.readouterr()
        assert f"{2 if what == 'no state' else 3} completed runs, {taken} of them taken" in said.out
        assert said.err.startswith(f"first_evidence/{folder.name}: ") and said.err.endswith("; it is left out\n")
    files = ["config.yaml", "metrics.parquet", "provenance.json", "state.json"]
    assert kept(results) == {"s1": files, "s3": files}


def test_a_kept_run_has_its_rows_metadata_and_the_names_of_what_is_left_out(results: Path) -> None:
    assert keep.main([str(results), "first_evidence"]) == 0
    (source,), (target,) = ((root / "first_evidence").glob("*-s1-*") for root in (results, results.parent / "kept"))
    before, after = (pq.read_table(folder / "metrics.parquet") for folder in (source, target))
    left_out = json.loads(after.schema.metadata[b"left_out"])
    assert set(left_out) == set(before.column_names) - set(after.column_names) and "gradvar/before_noise_share" in left_out
    for name in after.column_names:
        assert [str(x) for x in before[name].to_pylist()] == [str(x) for x in after[name].to_pylist()]  # nan is nan
    facts = json.loads((source / "provenance.json").read_text())
    assert facts == json.loads((target / "provenance.json").read_text())
    (second,) = (results.parent / "kept" / "first_evidence").glob("*-s2-*")
    assert "gate_curve" in facts and "gate_curve" not in json.loads((second / "provenance.json").read_text())


def test_a_run_with_a_manifest_is_not_reduced_in_place(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(results, results.parent / "kept")
    before = {path: path.read_bytes() for path in (results.parent / "kept").rglob("*") if path.is_file()}
    assert keep.main([str(results.parent / "kept"), "first_evidence"]) == 1
    assert capsys.readouterr().err.count("it has a manifest.json") == 3
    assert before == {path: path.read_bytes() for path in (results.parent / "kept").rglob("*") if path.is_file()}


@pytest.mark.parametrize(("where", "name"), [("nowhere", "first_evidence"), ("made", "nothing")])
def test_a_missing_folder_is_one_sentence(where: str, name: str, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        keep.main([str(results.parent / where), name])
    assert left.value.code == 2 and "give a results folder and the names of experiments in it" in capsys.readouterr().err
