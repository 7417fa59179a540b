"""Results of others, on disk in their own forms, as a file of results/external that the report reads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rgpo.report.claims.external import read_external
from rgpo.report.claims.importer import task_of
from rgpo.report.cli import main

FACTS = ["name=theirs", "source=a test", "license=MIT", "steps=1000000"]
TABLE = """,openrlbenchmark/sfujim-TD3/TD3 ({}),openrlbenchmark/cleanrl/ppo_continuous_action ({'tag': ['pr-285']})
HalfCheetah-v2,9890.35 ± 177.03,1442.60 ± 46.00
Hopper-v4,3227.50 ± 62.19,nan ± nan
Pusher-v2,-56.83 ± 13.33,-60.49 ± 4.37
"""


SHORT = "Step,Hopper-v4__ppo__1 - charts/episodic_return,Hopper-v4__ppo__2 - charts/episodic_return\n"
SHORT += "".join(f"{i},{i},{i if i < 2 else ''}\n" for i in range(20))
RUNS = "env_id,exp_name,charts/episodic_return,seed\n"


def test_a_file_is_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "td3.csv").write_text(TABLE)
    assert main(["import", "td3.csv", *FACTS, "n=3"]) == 0
    before = (here / "results/external/theirs.yaml").read_bytes()
    capsys.readouterr()
    assert main(["import", "td3.csv", *FACTS, "n=5"]) == 2
    assert "name=theirs: results/external/theirs.yaml exists; give another name" in capsys.readouterr().err
    assert (here / "results/external/theirs.yaml").read_bytes() == before


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(separator: str, here: Path) -> None:
    (here / "runs.csv").write_text((RUNS + "Hopper-v4,ppo,5,1\nHopper-v4,ppo,7,2\n").replace(",", separator))
    assert main(["import", "runs.csv", *FACTS]) == 0
    anchor = read_external(here / "results")[0]["theirs"]["ppo"]["hopper"]
    assert (anchor.value, anchor.n) == (6.0, 2)


def test_the_end_of_a_chart_is_by_its_steps(here: Path) -> None:
    rows = [f"{step},{step * 10}" for step in range(20, 0, -1)]
    (here / "chart.csv").write_text("\n".join(["Step,Hopper-v4__ppo__1__17 - charts/episodic_return", *rows]))
    assert main(["import", "chart.csv", *FACTS]) == 0
    assert read_external(here / "results")[0]["theirs"]["ppo"]["hopper"].value == 195.0


def test_tasks_by_environment_and_version() -> None:
    names = {name: task_of(name) for name in ("Hopper-v4", "Hopper-v2", "Walker2d-v4", "CartPole-v1", "Pusher-v2", "Nothing")}
    assert names["Hopper-v4"] == "hopper" and names["Hopper-v2"] == "hopper (v2)" and names["Walker2d-v4"] == "walker2d"
    assert names["CartPole-v1"] == "cartpole" and names["Pusher-v2"] == "Pusher-v2" and names["Nothing"] == "Nothing"


def test_open_rl_benchmarks_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "td3.csv").write_text(TABLE)
    assert main(["import", "td3.csv", *FACTS, "n=3", "arms=ppo:ppo_continuous_action,td3:TD3", "differs=version v2"]) == 0
    assert "5 numbers of 2 arms (td3, ppo)" in capsys.readouterr().out
    found, problems = read_external(here / "results")
    arms = found["theirs"]
    assert not problems and set(arms["ppo"]) == {"halfcheetah (v2)", "Pusher-v2"}
    anchor = arms["td3"]["hopper"]
    assert (anchor.value, anchor.sd, anchor.n, anchor.steps) == (3227.5, 62.19, 3, 1_000_000)
    assert anchor.source == "a test" and anchor.differs == "version v2"


def test_a_table_of_runs(here: Path) -> None:
    rows = ["Name,env_id,exp_name,seed,charts/episodic_return"]
    rows += [f"r{i},Hopper-v4,ppo_continuous_action,{i},{x}" for i, x in enumerate((2000, 2500, 2700))]
    (here / "runs.csv").write_text("\n".join([*rows, "r,Ant-v4,ppo_continuous_action,1,99"]))
    assert main(["import", "runs.csv", *FACTS, "arms=ppo:ppo_"]) == 0
    arms = read_external(here / "results")[0]["theirs"]["ppo"]
    assert arms["hopper"].value == 2400 and arms["hopper"].n == 3
    assert arms["hopper"].sd == pytest.approx(np.std([2000, 2500, 2700], ddof=1))
    assert arms["ant"].n == 1 and math.isnan(arms["ant"].sd)


def test_a_chart(here: Path) -> None:
    """20 rows per run: its number is the mean of the last two that it has; W&B adds columns of minimum and maximum."""
    runs = ["Hopper-v4__ppo__1__17", "Hopper-v4__ppo__2__18"]
    head = ["Step", *(f"{run} - charts/episodic_return{end}" for run in runs for end in ("", "__MIN", "__MAX"))]
    rows = [[str(i), *(str(x) if i < 18 else "" for x in (i, 0, 9, 2 * i, 0, 9))] for i in range(20)]
    (here / "chart.csv").write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in [head, *rows]))
    assert main(["import", "chart.csv", *FACTS]) == 0
    anchor = read_external(here / "results")[0]["theirs"]["ppo"]["hopper"]
    assert anchor.value == np.mean([16.5, 33.0]) and anchor.n == 2


def test_a_folder_of_runs(here: Path) -> None:
    for seed, value in enumerate((1.0, 3.0)):
        files = here / f"wandb/run-2026-{seed}/files"
        files.mkdir(parents=True)
        (files / "wandb-summary.json").write_text(json.dumps({"charts/episodic_return": value, "_step": 9}))
        (files / "config.yaml").write_text("wandb_version: 1\nenv_id: {value: Hopper-v4}\nexp_name: {value: ppo}\n")
    assert main(["import", "wandb", *FACTS]) == 0
    anchor = read_external(here / "results")[0]["theirs"]["ppo"]["hopper"]
    assert (anchor.value, anchor.n) == (2.0, 2)


@pytest.mark.parametrize(
    ("text", "words", "sentence"),
    [
        (TABLE, FACTS, "n=null: the file does not state how many seeds"),
        (TABLE, FACTS[:1], "import=source license: these are missing"),
        (TABLE, [*FACTS, "n=three"], "n=three: give a whole number"),
        (TABLE, [*FACTS, "seeds=3"], "import=seeds=3: give one of name, source"),
        (TABLE, [*FACTS, "n=3", "arms=a:openrl"], "a has two numbers in"),
        (TABLE, [*FACTS[1:], "name=../x", "n=3"], "name=../x: give letters"),
        ("a,b\n1,2\n", FACTS, "its columns (a, b) are none that is known"),
        ("", FACTS, "it has no rows"),
        ("Step,r - charts/episodic_return\n1,2\n", FACTS, "the run r is not named task__arm__seed"),
        (RUNS + "Hopper-v4,ppo,nan,1\n", FACTS, "row 2 has the value nan; remove the run, or give it a number"),
        (RUNS + "Hopper-v4,ppo,,1\n", FACTS, "row 2 has the value none; remove the run"),
        (RUNS + "Hopper-v4,ppo,5,1\nHopper-v4,ppo,6,1\n", FACTS, "seed 1 of an arm occurs twice in a task"),
        (RUNS + "Hopper-v4,,5,1\n", FACTS, "an arm or a task has no name"),
        (RUNS + "Hopper-v4,ppo,5,1\nHopper-v4,ppo,6,1.0\n", FACTS, "seed 1 of an arm occurs twice in a task"),
        (RUNS + "Hopper-v4,ppo,5,\n", FACTS, "row 2 has no seed"),
        (RUNS + "Hopper-v4,ppo,1_000,1\n", FACTS, "row 2 has the value 1_000"),
        (RUNS.replace("seed", "exp_name") + "Hopper-v4,ppo,5,1\n", FACTS, "it has the column exp_name twice"),
        (RUNS + "Hopper-v4,ppo,5,1\n", [*FACTS, "n=7"], "n=7: is read for a table of mean ± sd only"),
        (RUNS + "Hopper-v4,ppo,5,1\n", [*FACTS, "arms=ppo"], "arms=ppo: write ours:theirs"),
        (RUNS + "Hopper-v4,ppo,5,1\n", [*FACTS, "arms=ppo:zzz"], "no arm of the file has zzz in its name; there are ppo"),
        (RUNS + "Hopper-v4,ppo,5,1\n", [*FACTS, "name=again"], "name=again: it is given twice"),
        (RUNS + "Hopper-v4,ppo,5,1\n", [*FACTS, "metric=banana"], "metric=banana: there is no such metric"),
        (",a\nHopper-v4,5 ± 1e400\n", [*FACTS, "n=3"], "sd=inf: give a finite number"),
        (",a,b\nHopper-v4,5 ± 1\n", [*FACTS, "n=3"], "the row of Hopper-v4 is not as long as the header"),
        (SHORT, FACTS, "the run Hopper-v4__ppo__2 ends at row 3 of 21; remove its column"),
        (RUNS + "Hopper-v4,ppo\n", FACTS, "row 2 is shorter than the header"),
        (",a\nHopper-v4,1.2.3 ± 300\nAnt-v4,5 ± 1\n", [*FACTS, "n=3"], "Hopper-v4, a: 1.2.3 ± 300 is no cell mean ± sd"),
        (',a\nHopper-v4,"2,000.1 ± 300"\nAnt-v4,5 ± 1\n', [*FACTS, "n=3"], "Hopper-v4, a: 2,000.1 ± 300 is no cell"),
        (",a\nHopper-v4,5 ± -3\nAnt-v4,5 ± 1\n", [*FACTS, "n=3"], "Hopper-v4, a: 5 ± -3 is no cell"),
        (",a\nHopper-v4,5 ± 3\nHopper-v4,6 ± 1\n", [*FACTS, "n=3"], "a has two rows for Hopper-v4; remove one"),
        (TABLE, [*FACTS, "n=" + "9" * 15], "give 1 to 1,000,000 seeds"),
        (TABLE, [*FACTS[:3], "steps=²"], "steps=²: give a whole number above 0"),
        (TABLE, [*FACTS, "n=0"], "n=0: give a whole number above 0"),
        ("Step,Hopper-v4__ppo__1 - charts/episodic_return\n1,\n", FACTS, "the run Hopper-v4__ppo__1 has no value"),
    ],
)
def test_bad_input_is_one_sentence(
    text: str, words: list[str], sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "x.csv").write_text(text)
    assert main(["import", "x.csv", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (here / "results").exists()


def test_a_run_of_a_folder_without_the_metric_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, logged in enumerate(({"charts/episodic_return": 5.0}, {"_step": 9})):
        files = here / f"wandb/run-{seed}/files"
        files.mkdir(parents=True)
        (files / "wandb-summary.json").write_text(json.dumps(logged))
        (files / "config.yaml").write_text("env_id: {value: Hopper-v4}\nexp_name: {value: ppo}\n")
    assert main(["import", "wandb", *FACTS]) == 2
    assert "run-1/files has no charts/episodic_return; remove the run, or repair it" in capsys.readouterr().err


def test_no_file_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["missing.csv"], [], ["name=x"]):
        assert main(["import", *words, *FACTS]) == 2
        assert capsys.readouterr().err.count("\n") == 1
