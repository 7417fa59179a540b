"""Results of earlier versions: read by their present names, and grouped with runs of the present version."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import report_fixtures as fixtures
import yaml

from rgpo.report.cli import main, parse
from rgpo.report.figures import gates
from rgpo.report.read import rows
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import read_runs
from rgpo.report.read.run import Problem

COMMITTED = Path(__file__).parents[1] / "results"
ARCHIVE = COMMITTED / "archive"
OLD_RUN = "hopper-rgpo_signed-s{}-*"
SHARE = "language/zero_variance_group_share"


def load(experiment: Path) -> tuple[list[Group], list[Problem]]:
    """Groups of an experiment, and every problem of its runs."""
    runs, problems = read_runs(experiment, (), 0.1, (0.04,), lambda function, items, _: map(function, items))
    groups, more = group_runs(runs)
    return groups, problems + more


def with_present_names(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The config of a committed run as the present version writes it, by hand."""
    new = {key: value for key, value in config.items() if key not in ("dual", "published", "kl_spike_threshold")}
    new |= {"seed": seed, "memory_gb": 7.5, "metrics": None, "presets": {"sgd": {"lr": 3e-4}}}
    new["algorithm"] = {"_target_": "rgpo.learning.algorithm.GateAlgorithm"}
    new["gate"] = config["gate"] | {"_target_": "rgpo.gates.SignAwareSigmoid"}
    new["ref_gate"] = config["ref_gate"] | {"_target_": "rgpo.gates.Open"}
    new["gate_combination"] = {"_target_": "rgpo.core.surrogate.Detached"}
    new["advantage"] = config["advantage"] | {"_target_": "rgpo.core.advantages.GAE", "normalize": "minibatch"}
    new["penalty"] = {"_target_": "rgpo.core.kl_penalty.NoPenalty"}
    new["update"] = config["update"] | {"_target_": "rgpo.learning.sgd.SGD"}
    del new["update"]["normalize_advantage"]
    policy = config["task"]["policy"] | {"_target_": "rgpo.control.mlp.MLP"}
    new["task"] = config["task"] | {"_target_": "rgpo.control.task.Control", "policy": policy}
    choices = {key: value for key, value in config["choices"].items() if key != "dual"}
    new["choices"] = choices | {"algo": "rgpo_sign_aware", "gate": "sign_aware_sigmoid", "gate_combination": "detached"}
    return new


def copy_run(results: Path, seed: int) -> Path:
    """An archived run of the control experiment, whose rows do not hold its configuration."""
    (old,) = (ARCHIVE / "first_evidence").glob(OLD_RUN.format(seed))
    new = Path(shutil.copytree(old, results / "first_evidence" / old.name))
    pq.write_table(pq.read_table(new / "metrics.parquet").replace_schema_metadata(None), new / "metrics.parquet")
    return new


@pytest.mark.parametrize("experiment", ["first_evidence", "rlhf_embedded", "published_returns"])
def test_archived_results_have_present_names(experiment: str) -> None:
    groups, problems = load(ARCHIVE / experiment)
    assert problems == []
    assert all(group.label == group.algo and len(group.used) >= 3 for group in groups if experiment != "published_returns")
    algos = {group.algo for group in groups}
    assert not any("signed" in algo for algo in algos)
    assert experiment == "published_returns" or "rgpo_sign_aware" in algos
    keys = {key for group in groups for run in group.runs for key in run.config}
    assert not keys & {"choices.dual", "dual._target_", "kl_spike_threshold"} and not any(k.startswith("published") for k in keys)


def test_archived_runs_group_with_runs_of_the_present_version(tmp_path: Path) -> None:
    for seed in (1, 2):
        copy_run(tmp_path, seed)
    new = copy_run(tmp_path, 3)
    config = with_present_names(yaml.safe_load((new / "config.yaml").read_text()), seed=4)
    (new / "config.yaml").write_text(yaml.safe_dump(config))
    new.rename(new.with_name("hopper-rgpo_sign_aware-s4-00000000"))
    (group,), problems = load(tmp_path / "first_evidence")
    assert problems == [] and group.label == "rgpo_sign_aware"
    assert [run.seed for run in group.used] == [1, 2, 4]


def test_a_setting_that_matters_separates_versions(tmp_path: Path) -> None:
    copy_run(tmp_path, 1)
    new = copy_run(tmp_path, 2)
    config = with_present_names(yaml.safe_load((new / "config.yaml").read_text()), seed=2)
    config["gate"]["sharpness"] = 99.0
    (new / "config.yaml").write_text(yaml.safe_dump(config))
    groups, _ = load(tmp_path / "first_evidence")
    assert [group.label for group in groups] == ["rgpo_sign_aware sharpness=10", "rgpo_sign_aware sharpness=99"]


def test_a_former_name_is_accepted_as_baseline() -> None:
    for typed, name in (("rgpo_signed", "rgpo_sign_aware"), ("rgpo_signed sharpness=10", "rgpo_sign_aware sharpness=10")):
        assert parse([f"baseline={typed}"])[0].baseline == name
    assert parse(["baseline=ppo"])[0].baseline == "ppo" and parse([])[0].baseline is None


def test_a_renamed_column_is_read_by_its_present_name(tmp_path: Path) -> None:
    """Parts of both versions may lie in one run, which was interrupted and resumed after an upgrade."""
    metrics = {"language/dead_group_share": np.array([0.5, 0.25, 0.0, 0.0]), "language/num_tokens": np.full(4, 64.0)}
    fixtures.write_parquet(tmp_path / "metrics/part-0001-000000.parquet", metrics, 0, 2)
    renamed = {SHARE if "dead" in name else name: values for name, values in metrics.items()}
    fixtures.write_parquet(tmp_path / "metrics/part-0002-000000.parquet", renamed, 2, 4, attempt=2)
    found = rows.read(tmp_path, [SHARE])
    assert found.columns[SHARE].tolist() == [0.5, 0.25, 0.0, 0.0] and found.problems == []
    assert rows.read(tmp_path, ["language/dead_group_share"]).columns.keys() == {"attempt", "iteration", "env_steps"}


def test_gates_have_their_present_names() -> None:
    names = {curve.gate for curve in gates.compute(COMMITTED)}
    assert "sign_aware_sigmoid" in names and "sigmoid_signed" not in names


# metrics of a run's own config


DECLARED = {"dpo/margin": {"unit": "nats", "meaning": "margin of chosen over rejected"}}


def test_own_metrics_are_drawn_with_their_units(here: Path) -> None:
    for seed in (1, 2, 3):
        metrics = fixtures.metrics_of("hopper", "ppo", seed, 20) | {"dpo/margin": np.linspace(0, seed, 20)}
        declared = DECLARED | {"epoch/margin": {"unit": "bits", "meaning": "margin after each epoch"}}
        metrics["epoch/margin"] = [[0.1, 0.2]] * 20
        fixtures.write_run(here / "results", seed=seed, iterations=20, metrics=metrics, declared=declared)
    assert main(["format=svg", "num_resamples=200", "figures=[own_metrics]"]) == 0
    figure = (here / "report/first_evidence/figures/own_metrics.svg").read_text()
    assert "dpo/margin  [nats]" in figure and "epoch/margin  [bits]" in figure


def test_a_malformed_declaration_costs_its_metrics_only(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixtures.write_run(here / "results", declared={"dpo/margin": {"unit": "nats"}})
    assert main(["format=svg", "num_resamples=200", "figures=[kl,own_metrics]"]) == 1
    error = capsys.readouterr().err
    assert "metrics.dpo/margin" in error and "The metrics that it declares are left out" in error
    assert "no run measured a metric that its config declares" in error
    assert (here / "report/first_evidence/figures/kl.svg").exists()
