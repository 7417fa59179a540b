"""rgpo-report on synthetic results: what it reads and leaves out, what it computes, and that it repeats to the byte."""

from __future__ import annotations

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

from rgpo.report import watch, workers
from rgpo.report.cli import main
from rgpo.report.completions import _short
from rgpo.report.figures import gates
from rgpo.report.groups import Group, group_runs
from rgpo.report.load import Problem, read_run, read_runs
from rgpo.report.reduce import Detail

COLUMNS = ("return/train_mean", "return/eval_mean", "kl/old_exact", "kl/spike", "epoch/kl_old_exact")
FAST = ["formats=[svg]", "num_resamples=200"]
DETAIL = Detail(0.1, (0.02, 0.04), 400)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; results go to its results/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks x three algorithms x three seeds, written once; copy before changing."""
    results = tmp_path_factory.mktemp("stored") / "results"
    fixtures.write_experiment(results, algos=("ppo", "rgpo", "trpo"))
    fixtures.write_gates(results / "gates.parquet")
    return results


def load(results: Path, name: str = "first_evidence") -> tuple[list[Group], list[Problem]]:
    """Groups of an experiment and what was wrong."""
    return group_runs(read_runs(results / name, COLUMNS, 0.1, (0.04,), lambda function, items, _: map(function, items))[0])


# the command line


def test_everything_is_written(here: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"results_dir={stored}", "num_resamples=200"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "18 runs, 12 figures" in said.out
    figures = ("learning_curves", "aggregates", "profiles", "improvement", "kl", "spikes", "weight", "epoch_drift")
    for kind, start in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        for name in (*figures, "gradient_variance", "ratio_tails", "timing"):
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
        assert main(["num_resamples=200", "figures=[kl,gates]"]) == 0
        made.append({p: p.read_bytes() for p in (here / "report").rglob("*") if p.is_file()})
        time.sleep(1.1)  # a time stamp would show
        shutil.rmtree(here / "report")
    assert len(made[0]) == 1 + 2 * 3 + 7 * 3 and made[0] == made[1]


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
        (["formats=[]"], "formats=[]: give at least one"),
        (["nonsense"], "argument=nonsense: give key=value"),
        (["results_dir=nowhere"], "results_dir=nowhere: there is no such folder; run rgpo-run first"),
        (["results_dir=empty"], "results_dir=empty: it holds no runs"),
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
        (["ledger=x", "experiment=first_evidence"], "it judges all experiments"),
        (["ledger=file"], "ledger=file: it has no lines"),
        (["ledger=nowhere.md"], "ledger=nowhere.md: cannot be used"),
        (["out=file"], "out=file: cannot be written"),
    ],
)
def test_wrong_usage_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    (here / "empty").mkdir()
    (here / "file").write_text("")
    fixtures.write_run(here / "results", iterations=3)
    first = [] if words[0] in ("formats=[]", "compare") else [*FAST, "figures=[]"]
    assert main([*first, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# what is read


def test_highest_attempt_wins_where_parts_overlap(tmp_path: Path) -> None:
    folder = fixtures.write_run(tmp_path, iterations=10, reached=6, status="running")
    metrics = fixtures.metrics_of("hopper", "ppo", 1, 10)
    later = {**metrics, "return/train_mean": metrics["return/train_mean"] + 1e6}
    fixtures.write_parquet(folder / "metrics/part-0002-000000.parquet", later, 3, 8, attempt=2)
    (folder / "metrics/.part-0002-000001.parquet.writing").write_bytes(b"PAR1 half")
    run, problems = read_run(folder, COLUMNS, DETAIL)
    assert problems == [] and not run.complete
    assert run.curve("iteration").tolist() == list(range(1, 9))
    assert (run.curve("return/train_mean") > 5e5).tolist() == [False] * 3 + [True] * 5
    assert run.curve("attempt").tolist() == [1] * 3 + [2] * 5


def test_parts_with_other_columns_and_longer_lists(tmp_path: Path) -> None:
    folder = fixtures.write_run(tmp_path, iterations=4, reached=2, status="running")
    metrics = {"return/train_mean": np.arange(4.0), "epoch/kl_old_exact": [[0.5] * 12] * 4}
    fixtures.write_parquet(folder / "metrics/part-0001-000001.parquet", metrics, 2, 4)
    run, _ = read_run(folder, COLUMNS, DETAIL)
    assert np.isnan(run.curve("kl/old_exact")).tolist() == [False, False, True, True]
    drift = run.reduced.lists["epoch/kl_old_exact"]  # the first two rows have ten epochs, the others twelve at 0.5
    assert drift.shape == (12,) and drift[10:].tolist() == [0.5, 0.5] and drift[0] < 0.5


def test_corrupt_files_among_good_ones(here: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stored, here / "results")
    ppo, rgpo, trpo = (sorted((here / "results/first_evidence").glob(f"hopper-{a}-s*")) for a in ("ppo", "rgpo", "trpo"))
    whole = (ppo[0] / "metrics.parquet").read_bytes()
    (ppo[0] / "metrics.parquet").write_bytes(whole[: len(whole) // 2])
    (ppo[1] / "metrics.parquet").write_bytes(b"")
    (rgpo[0] / "config.yaml").unlink()
    (rgpo[1] / "state.json").write_text("{half")
    (trpo[0] / "provenance.json").unlink()
    (trpo[1] / "metrics.parquet").unlink()
    assert main([*FAST, "figures=[learning_curves]"]) == 1
    error, page = capsys.readouterr().err, (here / "report/index.html").read_text()
    again = "`rgpo-run -m experiment=first_evidence force=true` makes it again"
    expected = {
        ppo[0]: f"its rows are left out; {again}; the run is left out",
        ppo[1]: "metrics.parquet cannot be read",
        rgpo[0]: "config.yaml is missing; the run is left out",
        rgpo[1]: "state.json cannot be read",
        trpo[0]: "provenance.json is missing; its commit and versions are unknown",
        trpo[1]: f"it has no metrics yet; {again}; the run is left out",
    }
    assert error.count("\n") == len(expected)
    for folder, why in expected.items():
        assert any(folder.name in line and why in line for line in error.splitlines())
        assert folder.name in page
    assert (here / "report/first_evidence/figures/learning_curves.svg").exists()
    rows = {(row["task"], row["label"]): row for row in fixtures.read_csv(here / "report/first_evidence/tables/returns.csv")}
    assert [rows["hopper", algo]["n"] for algo in ("ppo", "rgpo", "trpo")] == ["1", "2", "2"]


def test_a_corrupt_part_costs_its_rows_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fixtures.write_run(here / "results", iterations=10, reached=6, status="running")
    (folder / "metrics/part-0001-000001.parquet").write_bytes(b"PAR1")
    assert main([*FAST, "figures=[]"]) == 1
    assert "metrics/part-0001-000001.parquet cannot be read" in capsys.readouterr().err
    assert "6/10" in (here / "report/first_evidence/tables/runs.md").read_text()


def test_only_unreadable_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fixtures.write_run(here / "results")
    (folder / "config.yaml").write_text("a: [")
    assert main(FAST) == 1
    assert "config.yaml cannot be read" in capsys.readouterr().err
    assert "config.yaml cannot be read" in (here / "report/index.html").read_text()


def test_a_missing_metric(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        metrics = fixtures.metrics_of("hopper", "ppo", seed, 30)
        if seed == 2:
            del metrics["kl/old_exact"]
        metrics.pop("gradvar/before")
        metrics.pop("gradvar/before_relative")
        fixtures.write_run(here / "results", seed=seed, metrics=metrics)
    assert main(FAST) == 1
    error = capsys.readouterr().err
    assert "-s2-" in error and "kl/old_exact was never measured" in error and "gradvar" not in error
    page = (here / "report/index.html").read_text()
    assert "frontier: no run measured kl/eval_ref_sequence" in page  # a note: nobody asked for it by name
    assert "python -m rgpo.gates_table" in page
    assert main([*FAST, "figures=[gradient_variance]"]) == 1
    assert "figures/gradient_variance" not in capsys.readouterr().err  # its effective sample size was measured
    assert main([*FAST, "figures=[frontier]"]) == 1
    assert "no run measured kl/eval_ref_sequence or reward" in capsys.readouterr().err


def test_unfinished_and_failed_runs_enter_no_mean(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        fixtures.write_run(here / "results", seed=seed)
    fixtures.write_run(here / "results", seed=4, status="failed", reached=10, reason="nan in the loss")
    fixtures.write_run(here / "results", seed=5, status="running", reached=20)
    fixtures.write_run(here / "results", algo="rgpo", seed=1, status="running", reached=20)
    assert main([*FAST, "figures=[kl]"]) == 1
    error = capsys.readouterr().err
    assert "failed at iteration 10 of 30 (nan in the loss)" in error and "running at iteration 20 of 30" in error
    assert "-rgpo-" not in error  # no other run of it finished: shown, marked as provisional
    ppo, rgpo = fixtures.read_csv(here / "report/first_evidence/tables/returns.csv")
    assert ppo["n"] == "3" and ppo["note"] == "2 runs not counted"
    assert rgpo["note"] == "provisional: none finished, at iteration 20 of 30"


# groups


def test_groups_keep_apart_what_differs(tmp_path: Path) -> None:
    for seed in (1, 2):
        fixtures.write_run(tmp_path, seed=seed)
        fixtures.write_run(tmp_path, seed=seed, iterations=60)
        fixtures.write_run(tmp_path, algo="rgpo", seed=seed, gate={"sharpness": 5.0})
        fixtures.write_run(tmp_path, algo="rgpo", seed=seed, gate={"sharpness": 20.0}, update={"lr": 1e-4})
        fixtures.write_run(tmp_path, algo="trpo", seed=seed)
        fixtures.write_run(tmp_path, "halfcheetah", "trpo", seed=seed, update={"lr": 1e-5})
    groups, problems = load(tmp_path)
    assert problems == [] and all(len(group.used) == 2 for group in groups)
    assert [(group.task, group.label) for group in groups] == [
        ("halfcheetah", "trpo"),
        ("hopper", "ppo total_env_steps=61440"),
        ("hopper", "ppo total_env_steps=122880"),
        ("hopper", "rgpo sharpness=5"),  # lr varies with it and tells nothing more
        ("hopper", "rgpo sharpness=20"),
        ("hopper", "trpo"),
    ]


def test_choices_name_variants(tmp_path: Path) -> None:
    adaptive = {"choices": {"penalty": "adaptive"}, "penalty": {"target": 0.02}}
    fixtures.write_run(tmp_path, algo="rgpo", penalty={"coef": 0.0})
    fixtures.write_run(tmp_path, algo="rgpo", **adaptive)
    fixtures.write_run(tmp_path, algo="rgpo", **{**adaptive, "penalty": {"target": 0.01}})
    labels = [group.label for group in load(tmp_path)[0]]
    assert sorted(labels) == [
        "rgpo penalty=adaptive target=0.01",
        "rgpo penalty=adaptive target=0.02",
        "rgpo penalty=none target=none",
    ]


def test_a_seed_is_counted_once(tmp_path: Path) -> None:
    first = fixtures.write_run(tmp_path)
    shutil.copytree(first, first.with_name("hopper-ppo-s1-00000000"))
    groups, problems = load(tmp_path)
    assert len(groups[0].runs) == 1 and "it is left out" in problems[0].why


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
        assert said in error and "`python -m rgpo.gates_table`" in error


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
    """A column that an older version lacked is not measured there; one of another type is left out with a sentence."""
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


def test_duplicate_seeds_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = fixtures.write_run(here / "results")
    shutil.copytree(first, first.with_name("hopper-ppo-s1-00000000"))
    assert main([*FAST, "figures=[]"]) == 1
    assert "has the config and seed of hopper-ppo-s1-00000000; it is left out" in capsys.readouterr().err


def test_a_read_only_folder_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixtures.write_run(here / "results")

    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)  # a user who may write anywhere runs the tests, too
    assert main([*FAST, "figures=[]"]) == 2
    assert capsys.readouterr().err == "rgpo-report: out=report: cannot be written (Permission denied); give a folder that can\n"


def test_many_rows_are_thinned_and_the_numbers_are_not(tmp_path: Path) -> None:
    metrics = fixtures.metrics_of("hopper", "ppo", 1, 1000)
    metrics["kl/old_exact"] = np.where(np.arange(1000) == 500, 5.0, 0.01)
    folder = fixtures.write_run(tmp_path, iterations=1000, metrics=metrics)
    run, _ = read_run(folder, {*COLUMNS, "gradvar/before"}, Detail(0.1, (0.04,), 50))
    assert run.reached == 1000 and len(run.curve("iteration")) == 50
    assert run.curve("iteration")[0] == pytest.approx(10.5)  # rows 1 to 20
    assert run.curve("return/train_mean")[3] == pytest.approx(np.mean(np.float32(metrics["return/train_mean"][60:80])))
    assert run.curve("gradvar/before")[0] == pytest.approx(np.mean(np.float32(metrics["gradvar/before"][[0, 10]])))
    assert run.curve("kl/old_exact:max").max() == 5.0 and run.reduced.spike_rates.tolist() == [0.001]
    assert run.number("return/train_mean", "final") == pytest.approx(np.mean(np.float32(metrics["return/train_mean"][-100:])))


def test_many_runs_are_read_by_two_processes(here: Path, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"results_dir={stored}", *FAST, "figures=[kl,timing]"]
    assert main([*words, "out=a"]) == 0
    monkeypatch.setattr(workers, "MANY_RUNS", 1)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert main([*words, "out=b"]) == 0
    one, two = ({p.relative_to(here / out): p.read_bytes() for p in (here / out).rglob("*.*")} for out in "ab")
    one.pop(Path("index.html")), two.pop(Path("index.html"))  # it names its folder
    assert one == two


def test_watch_reports_again_when_a_run_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_infinite_return_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2, 3):
        metrics = fixtures.metrics_of("hopper", "ppo", seed, 20)
        metrics["return/train_mean"] = np.where(seed == 1, np.inf, metrics["return/train_mean"])
        fixtures.write_run(here / "results", "hopper", "ppo", seed, 20, metrics=metrics)
    assert main([*FAST, "figures=[learning_curves]"]) == 1
    assert "return/train_mean is infinite at its end" in capsys.readouterr().err


def test_a_damaged_state_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = (fixtures.write_run(here / "results", "hopper", "ppo", seed, 20) for seed in (1, 2))
    (folder / "state.json").write_text('{"sta')
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"num_iterations": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main([*FAST, "figures=[]"]) == 1
    assert "state.json cannot be read" in (said := capsys.readouterr().err) and "force=true makes it again" in said


def test_ctrl_c_ends_without_a_traceback(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rgpo.report.cli._report", interrupt)
    assert main([]) == 130 and "interrupted" in capsys.readouterr().err


def test_a_very_large_figure_has_one_axis(here: Path, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*FAST, f"results_dir={stored}", "figures=[learning_curves]"]
    pages = []
    for most in (60, 1):
        monkeypatch.setattr("rgpo.report.render.MOST_PANELS_TWICE", most)
        assert main(words) == 0
        pages.append((here / "report/index.html").read_text().count('class="axis"'))
    assert pages == [1, 0]


def test_characters_that_nobody_sees_are_shown() -> None:
    assert _short("a\x00b\u202ec\nd\te") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\nd\te"
