"""plan=true: cells, what of them is done, CPU-hours by the measured rates; and runs that were made before some keys existed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rgpo.cli import plan, sweep
from rgpo.cli.config import Job, compose_jobs
from rgpo.cli.run import start
from rgpo.errors import ConfigError

ROOT = Path(__file__).parents[1]

WORDS = ["experiment=first_evidence", "task=hopper,ant", "algo=ppo,rgpo", "seed=1,2", "total_env_steps=1000000"]


def write_former(job: Job, name: str, **change: Any) -> Path:
    """A completed run of the job by an earlier version, which lacked some keys and was named by another hash."""
    node: dict[str, Any] = json.loads(json.dumps(job.config))
    for key in ("algorithm", "resume_from", "on_failure", "pause_at", "memory_gb"):
        node.pop(key)
    del node["update"]["clip_jointly"], node["update"]["target_kl"], node["task"]["wrappers"]
    folder = job.run_dir.parent / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(node | change))
    (folder / "state.json").write_text(json.dumps({"status": "completed", "attempt": 1, "iteration": 9, "num_iterations": 9}))
    return folder


def test_cells_and_hours_by_the_rates(here: Path) -> None:
    """8 runs: 2 seeds x 2 algorithms at 77 and 165 CPU-s for the million steps, and 3 for the rest of each run."""
    jobs = compose_jobs([*WORDS, "plan=true"], True, None)
    lines = plan.describe(jobs).splitlines()
    minutes = f"about {round((4 * (77 + 165) + 8 * 3) / 60)} CPU-minutes"
    assert lines[-1] == f"8 run(s), 0 done; left: {minutes} of {minutes}, from measured rates"
    cells = [line.split() for line in lines if " of 2" in line]
    assert [cell[-4:] for cell in cells] == 2 * [["0", "of", "2", "0.04"]] + 2 * [["0", "of", "2", "0.09"]]
    assert not any("seed" in " ".join(cell) for cell in cells) and not list(here.iterdir())


def test_a_run_from_before_some_keys_existed_is_done(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS[:3], "seed=1", "results_dir=r"]
    jobs = compose_jobs(words, True, None)
    folder = write_former(jobs[0], "hopper-ppo-s1-00000000")
    write_former(jobs[1], "hopper-rgpo-s1-00000000", gate={"_target_": "rgpo.gates.Sigmoid", "sharpness": 4.0})  # another value
    runs = plan.planned(jobs)
    assert [run.done for run in runs] == [True, False, False, False] and runs[0].folder == folder and runs[0].seconds == 0
    assert "1 of 1  0.00" in plan.describe(jobs) and "4 run(s), 1 done" in plan.describe(jobs)
    assert started(jobs, words, monkeypatch) == jobs[1:]
    forced = compose_jobs([*words, "force=true"], True, None)
    assert started(forced, words, monkeypatch) == forced


def started(jobs: list[Job], words: list[str], monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a sweep would start."""
    found: list[Job] = []

    def run(_: sweep.Launcher, left: list[Job]) -> tuple[int, Mapping[Path, str]]:
        found.extend(left)
        return 0, {}

    monkeypatch.setattr(sweep.Launcher, "run", run)
    assert sweep.sweep(jobs, words, None, start) == 1  # nothing was really run
    return found


def test_lengths_and_scales() -> None:
    """num_iterations counts rollouts of 2,048 steps; a language model of a scale that was never timed has no estimate."""
    (job,) = compose_jobs(["task=hopper", "num_iterations=100"], False, None)
    assert plan.seconds_of(job) == pytest.approx(3 + 100 * 2048 * 77e-6)
    (job,) = compose_jobs(["task=qwen_rlhf", "num_iterations=60"], False, None)
    assert plan.seconds_of(job) == 33.0
    assert plan.expected(float("nan")).startswith("an unknown time") and plan.expected(7200) == "about 2.0 CPU-hours"


def test_a_registered_design_is_shown(here: Path) -> None:
    text = plan.describe(compose_jobs(["experiment=factorial", "seed=1,2", "plan=true"], True, None))
    assert "registered 2026-11-26, predictions i, ii, vii (experiments/predictions.md)" in text
    assert "factors: task (4), gate (4), penalty (2); blocks: seed (2); null cells: gate=identity penalty=adaptive" in text
    assert "registered" not in plan.describe(compose_jobs(["experiment=smoke", "plan=true"], True, None))


@pytest.mark.parametrize(
    ("design", "sentence"),
    [
        ("{registered: x}", "design={'registered': 'x'}: give a mapping with registered, predictions, null_cells"),
        ("{registered: x, predictions: [i], null_cells: ['gate=open']}", "design.null_cells=gate=open: no run of the experiment"),
    ],
)
def test_a_design_that_does_not_fit_is_one_sentence(design: str, sentence: str, here: Path) -> None:
    jobs = compose_jobs(["task=cartpole", "gate=clip,identity", "seed=1,2", f"design={design}"], True, None)
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        plan.describe(jobs)


def test_every_registered_design_names_predictions_that_are_written_down(tmp_path: Path) -> None:
    """Each prediction is in experiments/predictions.md, for that experiment; each null cell is among the experiment's runs."""
    lines = (ROOT / "experiments/predictions.md").read_text().splitlines()
    rows = {cells[0]: cells[1] for line in lines if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 5}
    found = set()
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}))
    for file in sorted((ROOT / "conf/experiment").glob("*.yaml")):
        node = yaml.safe_load(file.read_text())
        if design := node.get("design"):
            found |= {*design["predictions"]}
            assert all(node["name"] in rows[name] for name in design["predictions"]), file
            data = [f"task.source.data={pairs}"] if file.stem == "smollm2" else []
            plan.describe(compose_jobs([f"experiment={file.stem}", "seed=1", "plan=true", *data], True, None))
    assert found == rows.keys() - {"id", ":--", "xiv"}, "xiv is of experiments/one_update.py, which is no sweep"
