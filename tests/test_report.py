"""rgpo-report on synthetic results: its files and messages, bad input, and reproducibility to the byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures
import yaml

from rgpo.report.cli import main
from rgpo.report.figures import gates
from rgpo.report.page import watch
from rgpo.report.page.completions import legible
from rgpo.report.read import workers

FAST = ["format=svg", "num_resamples=200"]


# the command line


def test_everything_is_written(here: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"results_dir={stored}", "num_resamples=200"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "18 runs, 12 figures" in said.out
    assert not [p for p in (here / "report").rglob("*") if p.suffix in (".svg", ".png", ".pdf")]  # nobody asked for them
    figures = ("learning_curves", "aggregates", "profiles", "improvement", "kl", "spikes", "weight", "epoch_drift")
    for kind, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        wanted = [] if kind == "svg" else ["figures=[kl,gates]"]
        assert main([f"results_dir={stored}", "num_resamples=200", f"format={kind}", *wanted]) == 0
        for name in (*figures, "gradient_variance", "ratio_tails", "timing") if kind == "svg" else ("kl",):
            assert (here / f"report/first_evidence/figures/{name}.{kind}").read_bytes().startswith(start)
        assert (here / f"report/figures/gates.{kind}").exists()
    for name in ("returns", "comparisons", "overall", "spikes", "cost", "runs"):
        for kind in ("md", "tex", "csv"):
            assert (here / f"report/first_evidence/tables/{name}.{kind}").stat().st_size > 100
    assert (here / "report/tables/ledger.md").exists()
    assert not list((here / "report").rglob(".*"))  # nothing half-written stays


def test_the_same_bytes_twice(here: Path, stored: Path) -> None:
    shutil.copytree(stored, here / "results")
    made = []
    for _ in range(2):
        assert main(["num_resamples=200", "figures=[kl,gates]", "format=pdf"]) == 0
        made.append({p: p.read_bytes() for p in (here / "report").rglob("*") if p.is_file()})
        time.sleep(1.1)  # a time stamp would show
        shutil.rmtree(here / "report")
    assert len(made[0]) == 1 + 2 + 8 * 3 and made[0] == made[1]


def test_no_torch_and_a_quick_help(tmp_path: Path, stored: Path) -> None:
    code = "import sys; from rgpo.report.cli import main; code = main(sys.argv[1:]); print(code, sorted(sys.modules))"
    words = [f"results_dir={stored}", f"out={tmp_path}", *FAST]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert loaded.startswith("0 ") and "'matplotlib'" in loaded
    for heavy in ("'torch'", "'pandas'", "'hydra'", "'gymnasium'", "'matplotlib.pyplot'"):
        assert heavy not in loaded
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "results_dir: results" in done.stdout and "exit code" in done.stdout
    for heavy in ("'numpy'", "'omegaconf'", "'yaml'"):
        assert heavy not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fgures=[kl]"], "fgures=[kl]: there is no such key. Did you mean figures?"),
        (["figures=[kll]"], "Did you mean kl?"),
        (["figures=kl"], "give a list, figures=[kl]"),
        (["figures=[kl"], "cannot be used"),
        (["dpi=many"], "dpi=many: cannot be used"),
        (["confidence=95"], "confidence=95.0: give a share between 0 and 1"),
        (["format=jpg"], "format=jpg: give one of svg, png, pdf, or null for none"),
        (["width=0"], "width=0.0: give 2 to 40 inches"),
        (["font_size=0"], "font_size=0.0: give 3 to 40 points"),
        (["nonsense"], "argument=nonsense: give key=value"),
        (["results_dir=nowhere"], "results_dir=nowhere: there is no such folder; run rgpo-run first"),
        (["results_dir=empty"], "results_dir=empty: it contains no runs"),
        (
            ["results_dir=results/first_evidence"],
            "results_dir=results/first_evidence: it is one experiment; give the folder above, results, and",
        ),
        (
            ["compare", "results", "results/first_evidence"],
            "compare=results/first_evidence: it is one experiment; give the folder above, results, and",
        ),
        (["experiment=first_evidense"], "Did you mean first_evidence?"),
        (["spike_sweep=[0]"], "spike_sweep=[0.0]: give nats above 0"),
        (["compare", "results"], "compare=results: give two results folders or commits"),
        (["ledger=x", "experiment=first_evidence"], "it covers all experiments"),
        (["ledger=file"], "ledger=file: it has no lines"),
        (["ledger=nowhere.md"], "ledger=nowhere.md: cannot be used"),
        (["out=file"], "out=file: cannot be written"),
    ],
)
def test_wrong_usage_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    (here / "empty").mkdir()
    (here / "file").write_text("")
    fixtures.write_run(here / "results", iterations=3)
    first = [] if words[0] == "compare" else [*FAST, "figures=[]"]
    assert main([*first, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# figures on disk


def test_svg_text_is_text_and_names_units(here: Path, stored: Path) -> None:
    main([f"results_dir={stored}", *FAST, "figures=[kl,gates]"])
    root = ET.parse(here / "report/first_evidence/figures/kl.svg").getroot()
    words = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"hopper", "halfcheetah", "update", "ppo", "rgpo", "trpo", "spike threshold 0.04 nats"} <= words
    assert any("[nats]" in text for text in words)


def test_gates_are_read_from_their_table(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_gates(tmp_path / gates.FILE)
    curves = gates.compute(tmp_path)
    assert [(c.gate, c.advantage) for c in curves[:2]] == [("clip", 1.0), ("clip", -1.0)] and len(curves) == 12
    for curve in curves:  # w = dg/dd
        slope = np.gradient(curve.gate_value, curve.log_ratio)
        assert np.median(np.abs(slope - curve.weight)) < 0.01
    fixtures.write_run(here / "results")
    for content, said in ((None, "there is no"), (b"PAR1", "cannot be read")):
        if content:
            (here / "results" / gates.FILE).write_bytes(content)
        assert main([*FAST, "figures=[gates]"]) == 1
        error = capsys.readouterr().err
        assert said in error and "`python -m rgpo.cli.gates_table`" in error


# bad input: what can be reported is reported


def test_an_absent_baseline_leaves_the_comparisons_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_experiment(here / "results", tasks=("hopper",), algos=("rgpo", "trpo"))
    assert main([*FAST, "figures=[kl,profiles]", "baseline=ppoo"]) == 1
    error = capsys.readouterr().err
    assert "baseline=ppoo: no run has this algorithm or label" in error and "profiles: no run measured" in error
    assert (here / "report/first_evidence/figures/kl.svg").exists()
    assert not (here / "report/first_evidence/tables/comparisons.csv").exists()


def test_one_run_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_run(here / "results")
    assert main(FAST) == 0
    assert capsys.readouterr().err == ""
    assert "(n = 1 < 3)" in (here / "report/first_evidence/tables/returns.md").read_text()


def test_mixed_schemas(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column that an older version lacks counts as not measured; one of another type is left out with a problem."""
    for seed in (1, 2, 3):
        metrics = fixtures.metrics_of("hopper", "ppo", seed, 30)
        if seed == 1:
            del metrics["ess/weight"]
        folder = fixtures.write_run(here / "results", seed=seed, metrics=metrics)
        if seed == 2:
            table = pq.read_table(folder / "metrics.parquet", partitioning=None)
            place = table.column_names.index("ratio/max")
            words = pa.array(["much"] * len(table))
            pq.write_table(table.set_column(place, "ratio/max", words), folder / "metrics.parquet")
    assert main([*FAST, "figures=[weight,ratio_tails]"]) == 1
    error = capsys.readouterr().err
    assert "metrics.parquet: ratio/max is string and not numbers; it is left out" in error
    assert "ess/weight was never measured in hopper-ppo-s1" in error and error.count("\n") == 3


def test_duplicate_seeds_are_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fixtures.write_run(here / "results")
    shutil.copytree(first, first.with_name("hopper-ppo-s1-00000000"))
    assert main([*FAST, "figures=[]"]) == 1
    assert "has the config and seed of hopper-ppo-s1-00000000; it is left out" in capsys.readouterr().err


def test_a_read_only_folder_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixtures.write_run(here / "results")

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)  # a user who may write anywhere runs the tests, too
    assert main([*FAST, "figures=[]"]) == 2
    assert capsys.readouterr().err == "rgpo-report: out=report: cannot be written (Permission denied); give a folder that can\n"


def test_many_runs_are_read_by_two_processes(here: Path, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"results_dir={stored}", *FAST, "figures=[kl,timing]"]
    assert main([*words, "out=a"]) == 0
    monkeypatch.setattr(workers, "MANY_RUNS", 1)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert main([*words, "out=b"]) == 0
    one, two = ({p.relative_to(here / out): p.read_bytes() for p in (here / out).rglob("*.*")} for out in "ab")
    one.pop(Path("index.html")), two.pop(Path("index.html"))  # it names its folder
    assert one == two


def test_watch_reports_again_when_a_run_continues(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fixtures.write_run(here / "results", iterations=10, reached=5, status="running")
    seen = []

    def pause(_: float) -> None:
        seen.append("5/10" in (here / "report/first_evidence/tables/runs.md").read_text())
        if len(seen) == 1:
            fixtures.write_parquet(folder / "metrics/part-0001-000001.parquet", fixtures.metrics_of("hopper", "ppo", 1, 10), 5, 8)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", pause)
    assert main([*FAST, "figures=[]", "watch=true"]) == 0
    assert seen == [True, False, False] and "8/10" in (here / "report/first_evidence/tables/runs.md").read_text()


def test_an_infinite_return_is_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        metrics = fixtures.metrics_of("hopper", "ppo", seed, 20)
        metrics["return/train_mean"] = np.where(seed == 1, np.inf, metrics["return/train_mean"])
        fixtures.write_run(here / "results", "hopper", "ppo", seed, 20, metrics=metrics)
    assert main([*FAST, "figures=[learning_curves]"]) == 1
    assert "return/train_mean is infinite at its end" in capsys.readouterr().err


def test_a_damaged_state_is_reported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = (fixtures.write_run(here / "results", "hopper", "ppo", seed, 20) for seed in (1, 2))
    (folder / "state.json").unlink()
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"num_iterations": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([*FAST, "figures=[]"]) == 1
    error = capsys.readouterr().err
    assert "state.json is missing" in error and "rerun its rgpo-run command with force=true" in error
    (folder / "state.json").write_text('{"sta')
    assert main([*FAST, "figures=[]"]) == 1
    assert "state.json cannot be read (not valid JSON, line 1); the run is left out" in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rgpo.report.cli._report", interrupt)
    assert main([]) == 130 and "interrupted" in capsys.readouterr().err


def test_invisible_characters_are_replaced() -> None:
    assert legible("a\x00b\u202ec\nd\te") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\nd\te"
