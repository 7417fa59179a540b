"""Verdicts follow from the runs that a claim names; no other run, however it got there, changes one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixtures as fixtures
import yaml
from claim_fixtures import FLAT, claim, registered, verdict, write

from rgpo.errors import ConfigError
from rgpo.report.claims.verdict import REPRODUCED, UNDECIDED, UNTESTED
from rgpo.report.read.repeated import read_repeated, record

KL_LEVEL = {"kind": "level", "metric": "kl/old_exact", "statistic": "mean", "low": 0.01, "high": 0.03}
ONE_ARM = {"treatment": {"algo": "rgpo"}}


def test_the_registered_runs_decide(here: Path) -> None:
    registered(here)
    found = verdict(here)
    assert found.outcome == REPRODUCED and found.ours.startswith("hopper -0.99 % [-1.9, -0.092]")
    assert found.setting == "first_evidence, 20 iterations, 3 seeds" and found.version == "0123456789: changed since"


def toy_sweep(here: Path) -> None:
    """More seeds, but short: 4 seeds of a few iterations once replaced 3 of 300,000 steps."""
    for algo in FLAT:
        for seed in (1, 2, 3, 4):
            fixtures.write_run(here / "results", "hopper", algo, seed, 5, metrics=fixtures.metrics_of("hopper", "ppo", seed, 5))


def toy_experiment(here: Path) -> None:
    for algo in FLAT:
        for seed in (1, 2, 3, 4):
            write(here, algo, seed, final=50.0, name="toy")


def extra_seed(here: Path) -> None:
    write(here, "ppo", 4, final=9000.0, memory_gb=7)


def other_memory(here: Path) -> None:
    """A registered seed once more with another memory_gb, which is no other configuration."""
    write(here, "ppo", 3, memory_gb=7)


def other_setting(here: Path) -> None:
    write(here, "rgpo", 1, final=9000.0, update={"lr": 1e-2})


def changed_core(here: Path) -> None:
    for algo in FLAT:
        run = write(here, algo, 1, final=9000.0, eval_every=7)
        facts = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(json.dumps(facts | {"commit": "f" * 40, "code": "fedcba987654"}))


def run_of_another_experiment(here: Path) -> None:
    moved = write(here, "rgpo", 2, final=9000.0, name="toy")
    moved.rename(here / "results/first_evidence" / moved.name)


def copied_experiment(here: Path) -> None:
    shutil.copytree(here / "results/first_evidence", here / "results/a_copy")


def renamed_run(here: Path) -> None:
    """A folder with the name of another task and seed; the configuration inside counts."""
    (run,) = (here / "results/first_evidence").glob("hopper-ppo-s1-*")
    run.rename(run.with_name("ant-rgpo-s9-00000000"))


def doubled_seed(here: Path) -> None:
    (run,) = (here / "results/first_evidence").glob("hopper-ppo-s1-*")
    shutil.copytree(run, run.with_name("hopper-ppo-s1-ffffffff"))


DISTURBANCES = (toy_sweep, toy_experiment, extra_seed, other_memory, other_setting, changed_core, run_of_another_experiment)
DISTURBANCES += (copied_experiment, renamed_run, doubled_seed)


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_no_other_run_moves_a_verdict(disturb: Callable[[Path], None], here: Path) -> None:
    registered(here)
    path = claim(here, evidence={"code": ["0123456789"]})
    before = verdict(here, path)
    disturb(here)
    after = verdict(here, path)
    assert before.outcome == REPRODUCED and after.outcome == before.outcome and after.version == before.version
    assert after.setting == before.setting and after.ours.split("; ")[:1] == before.ours.split("; ")[:1]


def test_a_variant_counts_by_its_settings_and_not_by_its_seeds(here: Path) -> None:
    """The registered treatment lost a seed, and runs with another learning rate have all of them."""
    registered(here)
    for seed in (1, 2, 3):
        write(here, "rgpo", seed, final=5000.0, update={"lr": 1e-2})
    assert verdict(here).outcome == REPRODUCED
    lost = next(
        run
        for run in (here / "results/first_evidence").glob("hopper-rgpo-s3-*")
        if "lr: 0.01" not in (run / "config.yaml").read_text()
    )
    shutil.rmtree(lost)
    found = verdict(here)
    assert found.outcome == UNTESTED and found.ours == "treatment without seed 3 of 3 in hopper"


def test_a_seed_that_diverged_is_named(here: Path) -> None:
    registered(here)

    def rewrite(algo: str, seed: int, value: float | None) -> None:
        shutil.rmtree(next((here / "results/first_evidence").glob(f"hopper-{algo}-s{seed}-*")))
        write(here, algo, seed, final=value)

    for value in (np.nan, -np.inf):
        rewrite("rgpo", 2, value)
        found = verdict(here)
        assert found.outcome == UNDECIDED and "treatment without a finite return/train_mean of seed 2 in hopper" in found.ours
    rewrite("rgpo", 2, None), rewrite("trpo", 1, np.nan)
    found = verdict(here)
    assert found.outcome == UNDECIDED and "the null arm was not run, or not whole" in found.ours


def test_of_a_doubled_seed_the_earliest_run_counts(here: Path) -> None:
    registered(here)
    before = verdict(here)
    again = write(here, "rgpo", 1, final=9000.0, memory_gb=7)
    facts = json.loads((again / "provenance.json").read_text())
    (again / "provenance.json").write_text(json.dumps(facts | {"started": "2999-01-01T00:00:00+00:00"}))
    again.rename(again.with_name("hopper-rgpo-s1-00000000"))  # the first by name
    after = verdict(here)
    assert after.outcome == before.outcome == REPRODUCED and after.ours.startswith(before.ours)
    assert "hopper, treatment: seed 1 was run more than once, of which the earliest counts" in after.ours


def test_arms_that_differ_in_more_than_they_name_decide_nothing(here: Path) -> None:
    for algo in FLAT:
        for seed in (1, 2, 3):
            write(here, algo, seed, update={"lr": 1e-2 if algo == "rgpo" else 3e-4})
    found = verdict(here)
    assert found.outcome == UNDECIDED
    assert "treatment differs from the baseline in update.lr (0.01 and 0.0003), which evidence.differ does not name" in found.ours
    assert verdict(here, claim(here, evidence={"differ": ["update.lr"]})).outcome == REPRODUCED
    arms = {"treatment": {"algo": "rgpo", "update.lr": 1e-2}, "baseline": {"algo": "ppo"}}
    assert verdict(here, claim(here, arms=arms)).outcome == REPRODUCED


def test_options_and_null_arms_that_differ_without_a_word_decide_nothing(here: Path) -> None:
    gates = {"treatment": {"gate": "sigmoid"}, "baseline": {"gate": "clip"}}
    null = {"gate": "identity"}
    for gate, penalty in (("sigmoid", "adaptive"), ("clip", "none"), ("identity", "none")):
        for seed in (1, 2, 3):
            write(here, "ppo", seed, choices={"gate": gate, "penalty": penalty}, final=300.0 if gate == "identity" else None)
    found = verdict(here, claim(here, arms=gates, null_arm=null))
    assert found.outcome == UNDECIDED and "treatment differs from the baseline in penalty (adaptive and none)" in found.ours
    named = {"treatment": {"gate": "sigmoid", "penalty": "adaptive"}, "baseline": {"gate": "clip", "penalty": "none"}}
    assert verdict(here, claim(here, arms=named, null_arm=null)).outcome == REPRODUCED
    for run in (here / "results/first_evidence").glob("*"):
        config = yaml.safe_load((run / "config.yaml").read_text())
        if config["choices"]["gate"] == "identity":
            (run / "config.yaml").write_text(yaml.safe_dump(config | {"update": {**config["update"], "lr": 0.1}}))
    found = verdict(here, claim(here, arms=named, null_arm=null))
    assert found.outcome == UNDECIDED and "null differs from the baseline in update.lr (0.1 and 0.0003)" in found.ours


def test_the_same_runs_are_no_two_arms(here: Path) -> None:
    registered(here)
    same = {"treatment": {"algo": "ppo"}, "baseline": {"algo": "ppo", "update.lr": 3e-4}}
    found = verdict(here, claim(here, arms=same))
    assert found.outcome == UNDECIDED and "treatment has the runs of the baseline in hopper" in found.ours


def test_toys_are_no_long_runs(here: Path) -> None:
    """num_iterations has precedence over total_env_steps, which the configuration keeps."""
    for algo in FLAT:
        for seed in (1, 2, 3):
            write(here, algo, seed, total_env_steps=1_000_000)
    found = verdict(here, claim(here, evidence={"steps": 1_000_000}))
    assert (found.outcome, found.ours) == (UNTESTED, "no run of experiment first_evidence has 1,000,000 steps")


def test_a_seed_that_was_begun_twice_is_named(here: Path) -> None:
    registered(here)
    again = write(here, "rgpo", 2, memory_gb=7)
    (again / "state.json").write_text(json.dumps({"status": "failed", "attempt": 1, "iteration": 7, "num_iterations": 20}))
    again.rename(again.with_name("hopper-rgpo-s2-00000000"))
    found = verdict(here)
    assert found.outcome == REPRODUCED and "hopper, treatment: seed 2 begun once more and not finished" in found.ours


def test_runs_with_several_versions_of_a_library_decide_nothing(here: Path) -> None:
    registered(here)
    for run in (here / "results/first_evidence").glob("hopper-ppo-*"):
        facts = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(json.dumps(facts | {"versions": facts["versions"] | {"mujoco": "2.3.3"}}))
    found = verdict(here)
    assert found.outcome == UNDECIDED and "the evidence was made with several versions of mujoco (2.3.3, " in found.ours


def test_arms_of_one_commit_are_of_one_code_version(here: Path) -> None:
    """A digest covers the options of its run, so that each arm has its own."""
    registered(here)
    for run in (here / "results/first_evidence").iterdir():
        facts = json.loads((run / "provenance.json").read_text()) | {
            "commit": "a" * 40,
            "dirty": False,
            "code": run.name.split("-")[1],
        }
        (run / "provenance.json").write_text(json.dumps(facts))
    found = verdict(here)
    assert found.outcome == REPRODUCED and found.version == "aaaaaaaaaa: changed since"
    (run,) = (here / "results/first_evidence").glob("hopper-ppo-s2-*")
    (run / "provenance.json").write_text(json.dumps(facts | {"commit": "b" * 40, "code": "ppo"}))
    found = verdict(here)
    assert found.outcome == UNDECIDED and "the evidence is of several code versions (ppo, rgpo, trpo)" in found.ours


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"evidence": {"tasks": ["hoper"]}}, "no run of experiment first_evidence is of task hoper"),
        ({"evidence": {"steps": 7}}, "no run of experiment first_evidence has 7 steps"),
        ({"evidence": {"config": {"update.lrr": 1}}}, "no run of experiment first_evidence has update.lrr=1"),
        ({"evidence": {"code": ["0000000"]}}, "no run of experiment first_evidence is of code 0000000"),
        ({"arms": {"treatment": {"algo": "rgpo", "update.lrr": 1}, "baseline": {"algo": "ppo"}}}, "a setting update.lrr"),
        ({"rule": {**KL_LEVEL, "metric": "kl/ref_exact"}, "arms": ONE_ARM}, "without a finite kl/ref_exact of any seed"),
    ],
)  # fmt: skip
def test_why_nothing_counts(change: dict[str, Any], why: str, here: Path) -> None:
    registered(here)
    found = verdict(here, claim(here, **change))
    assert found.outcome in (UNTESTED, UNDECIDED) and why in found.ours, found


def test_what_is_lost_is_named_and_decides_nothing(here: Path) -> None:
    registered(here), registered(here, "halfcheetah")
    path = claim(here, evidence={"tasks": ["hopper", "halfcheetah"]})
    assert verdict(here, path).outcome == REPRODUCED
    (run,) = (here / "results/first_evidence").glob("halfcheetah-rgpo-s2-*")
    aside = run.rename(here / run.name)
    found = verdict(here, path)
    assert found.outcome == UNDECIDED and "treatment without seed 2 of 3 in halfcheetah" in found.ours
    for other in (here / "results/first_evidence").glob("halfcheetah-*"):
        shutil.rmtree(other)
    found = verdict(here, path)
    assert found.outcome == UNDECIDED and "treatment not run in halfcheetah" in found.ours and "hopper -0.99 %" in found.ours
    aside.rename(run)
    (here / "results/first_evidence").rename(here / "results/elsewhere")
    assert verdict(here, path)[:2] == (UNTESTED, "no finished run of experiment first_evidence")


def test_two_variants_or_two_versions_decide_nothing_until_one_is_named(here: Path) -> None:
    registered(here)
    for seed in (1, 2, 3):
        write(here, "rgpo", seed, final=5000.0, gate={"slope": 4.0})  # which the other arms do not have
    found = verdict(here)
    assert found.outcome == UNTESTED and "treatment run in several variants (slope=4 and slope=none)" in found.ours
    named = claim(here, arms={"treatment": {"algo": "rgpo", "gate.slope": None}, "baseline": {"algo": "ppo"}})
    assert verdict(here, named).outcome == REPRODUCED
    for run in (here / "results/first_evidence").glob("hopper-ppo-*"):
        facts = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(json.dumps(facts | {"code": "fedcba987654", "commit": "f" * 40}))
    found = verdict(here, named)
    assert found.outcome == UNDECIDED and "several code versions (0123456789, fedcba987654)" in found.ours
    both = claim(here, arms=yaml.safe_load(named.read_text())["arms"], evidence={"code": ["0123456789", "fedcba987654"]})
    assert verdict(here, both).outcome == REPRODUCED


def test_evidence_is_current_while_the_code_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(here)
    monkeypatch.setattr("rgpo.report.read.run.code_digest", lambda choices, target: "0123456789")
    assert verdict(here).version == "0123456789: unchanged"


def test_runs_that_were_repeated_with_todays_code_are_counted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(here)
    monkeypatch.setattr("rgpo.report.read.run.code_digest", lambda choices, target: "today")
    path = here / "results/repeated.json"
    for seed, code in ((1, "today"), (2, "today"), (3, "yesterday")):
        (run,) = (here / "results/first_evidence").glob(f"hopper-rgpo-s{seed}-*")
        record(path, f"first_evidence/{run.name}", {"code": code, "commit": "c", "found": "equal"})
    assert verdict(here).version == "0123456789: changed since; 2 of its 9 runs repeated with today's: equal"
    for odd in ({"commit": "c", "found": "equal"}, {"code": "c", "commit": "c", "found": "different"}):
        path.write_text(json.dumps({"runs": {"a/b": odd}}))
        found, (problem,) = read_repeated(here / "results")
        assert not found and "the entry of a/b is no repetition" in problem.why
    path.write_text("{")
    found, (problem,) = read_repeated(here / "results")
    assert not found and "repetitions are left out" in problem.why
    with pytest.raises(ConfigError, match="cannot be written"):
        record(path, "a/b", {"code": "", "commit": "", "found": "equal"})
