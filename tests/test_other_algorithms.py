"""Algorithms outside the gate family, each one file and one yaml, are composed, refused, swept, resumed and reported alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import report_fixtures as fixtures
import torch
from cli import checkpoint_of, rgpo_run, rows
from pair_files import line, write
from tiny_models import write_model, write_reward_model

from rgpo.cli import run
from rgpo.cli.config import Job, build, compose_jobs
from rgpo.errors import ConfigError
from rgpo.learning.types import Requirements
from rgpo.report import cli as report
from rgpo.runtime import run_folder, runner

COMMON = ["num_iterations=4", "eval_every=2", "gradvar_every=2", "checkpoint_every_s=0"]
NAMES = ("a2c", "dpo")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Short runs: CartPole, and preference pairs under a tiny Qwen2 with adapters."""
    folder = tmp_path_factory.mktemp("parts")
    write_model(folder / "model")
    write_reward_model(folder / "reward")
    write(folder / "hh.jsonl.gz", *[line(f"\n\nHuman: what is {i}?", f" a cat {i}", f" an animal {i}") for i in range(60)])
    source = {"model": folder / "model", "data": folder / "hh.jsonl.gz", "reward_model": folder / "reward"}
    source |= {"heldout_share": 0.3, "dtype": "float32", "reward_dtype": "float32", "device": "cpu"}
    task = {"num_prompts": 6, "max_new_tokens": 8, "micro_batch_size": 5, "num_eval_prompts": 4, "num_samples": 2}
    task |= {"lora.rank": 2, "gradient_checkpointing": False}
    language = [*(f"task.source.{k}={v}" for k, v in source.items()), *(f"task.{k}={v}" for k, v in task.items())]
    knobs = ["algorithm.lr=1e-2", "algorithm.num_epochs=2", "algorithm.num_minibatches=3"]
    return {
        "a2c": ["algo=a2c", "task=cartpole", *COMMON, "algorithm.anneal_lr=true", "task.num_eval_episodes=2"],
        "dpo": ["algo=dpo", "task=qwen_rlhf", "scale=paper", *COMMON, *language, *knobs],
    }


def start(words: list[str], results: Path, fails_at: int = 0) -> Job:
    """Run in this process; with fails_at it stops in that rollout of this attempt."""
    (job,) = compose_jobs([*words, f"results_dir={results}"], False, None)
    run_folder.prepare(job.run_dir, False)
    task, algorithm = build(job.config)
    collect, count = task.collect, iter(range(1, 100))

    def stops(policy: Any) -> Any:
        if next(count) == fails_at:
            raise OSError(5, "unplugged")
        return collect(policy)

    task.collect = stops
    runner.run(job.config, task, algorithm, job.run_dir, job.config_hash, job.command)
    return job


@pytest.fixture(scope="module")
def whole(words: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Uninterrupted runs in one results folder."""
    results = tmp_path_factory.mktemp("whole") / "results"
    return {name: start(words[name], results) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_equals_an_uninterrupted_one(
    name: str, words: dict[str, list[str]], whole: dict[str, Job], tmp_path: Path
) -> None:
    """Stopped in the third rollout: resumed from the checkpoint after iteration 2, bit for bit."""
    with pytest.raises(Exception, match="unplugged"):
        start(words[name], tmp_path, fails_at=3)
    (state,) = (json.loads(file.read_text()) for file in tmp_path.rglob("state.json"))
    assert state["status"] == "failed" and state["iteration"] == 2
    job = start(words[name], tmp_path)
    ours, theirs = (checkpoint_of(run) for run in (job.run_dir, whole[name].run_dir))
    assert ours["iteration"] == 4 and ours["policy"].keys() == theirs["policy"].keys()
    assert all(torch.equal(ours["policy"][key], theirs["policy"][key]) for key in ours["policy"])
    pd.testing.assert_frame_equal(rows(job.run_dir), rows(whole[name].run_dir), check_exact=True)


def test_columns_are_measured_and_none_of_the_gates(whole: dict[str, Job]) -> None:
    """Its own metrics every iteration, the packaged ones that it has, and nothing made up about gates, ratios or advantages."""
    for name, job in whole.items():
        frame = rows(job.run_dir)
        own = [column for column in frame if column.startswith(f"{name}/")]
        assert set(own) == set(job.config["metrics"]) and frame[own].notna().all(axis=None)
        assert frame["kl/old_exact"].gt(0).all() and frame["grad/norm_mean"].gt(0).all()
        assert frame["gradvar/before"].notna().tolist() == [True, False, True, False]
        foreign = ("gate/", "weight/", "ratio/", "ess/", "loss/") + (("advantage/", "value/") if name == "dpo" else ())
        assert [column for column in frame if column.startswith(foreign)] == []
        assert frame["gate"].unique().tolist() == ["none"]
    frame = rows(whole["dpo"].run_dir)
    assert [column for column in frame if column.startswith(("kl/ref_k", "sampler/"))] == []  # of the policy's own samples
    assert frame["dpo/accuracy"].iloc[-1] > frame["dpo/accuracy"].iloc[0] and frame["dpo/loss"].iloc[-1] < 0.69


def test_the_report_has_both_with_their_units(whole: dict[str, Job], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = whole["a2c"].run_dir.parents[1]
    code = report.main([f"results_dir={results}", f"out={tmp_path}", "figures=[own_metrics,kl]", "format=svg"])
    assert code == 0, capsys.readouterr().err
    page = json.dumps(fixtures.page_data(tmp_path / "index.html"), separators=(",", ":"))
    for name, unit in (("a2c/value_loss", "reward^2"), ("dpo/margin", "nats")):
        assert f'"name":"{name}","unit":"{unit}"' in page


def test_both_can_be_listed_and_printed(
    words: dict[str, list[str]], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for extra, texts in (
        (["plan=true"], ("algorithm: DPO(beta=0.1, lr=0.01,", "missing", "1 run(s)")),
        (["--cfg", "job"], ("_target_: rgpo.language.dpo.DPO", "rgpo.language.policy.samplers.OfflinePairs", "group_size: 2")),
    ):
        monkeypatch.setattr(sys, "argv", ["rgpo-run", *words["dpo"], *extra])
        with pytest.raises(SystemExit) as stop:
            run.main()
        said = capsys.readouterr().out
        assert stop.value.code == 0 and all(text in said for text in texts), said
    assert not list(here.iterdir())


def test_a_sweep_has_them_beside_the_gate_family(tmp_path: Path) -> None:
    said = rgpo_run(["-m", "algo=a2c,ppo", "num_iterations=2", "eval_every=0", "task.num_steps=8"], tmp_path)
    states = [json.loads(file.read_text())["status"] for file in tmp_path.rglob("state.json")]
    assert states == ["completed"] * 2 and "update A2C(lr=0.0007" in " ".join(said.split())
    assert "gate Clip(" in " ".join(said.split())


REFUSED = {
    "algo=a2c gate=clip": ("gate=clip: algo=a2c does not read it",),
    "algo=a2c update=sgd": ("update=sgd: algo=a2c does not read it",),
    "algo=a2c penalty=fixed": ("penalty=fixed: algo=a2c does not read it",),
    "algo=a2c ~advantage": ("advantage=null: algo=a2c needs one",),
    "algo=a2c advantage=group_relative": ("group_relative", "gae"),
    "algo=a2c algorithm.alpha=1": ("algorithm.alpha=1: is not a known key", "algorithm.rms_alpha"),
    "algo=a2c task=qwen_rlhf": ("task.num_envs=8",),
    "algo=dpo task=qwen_rlhf gate=clip": ("gate=clip: algo=dpo does not read it",),
    "algo=dpo task=qwen_rlhf advantage=gae": ("advantage=gae: algo=dpo does not read it",),
    "algo=dpo task=qwen_rlhf sampler@task.sampler=own": ("task.sampler=Own", "offline_pairs"),
    "algo=dpo task=qwen_rlhf algorithm.num_minibatches=3": ("algorithm.num_minibatches=3: does not divide 8 pairs",),
    "algo=dpo task=cartpole": ("algo=dpo", "sampler@task.sampler", "choose a task"),
    "algo=dpo": ("algo=dpo", "sampler@task.sampler", "choose a task"),
    "algo=rgpo task=qwen_rlhf sampler@task.sampler=offline_pairs task.group_size=2": ("task.sampler=OfflinePairs", "own"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_does_not_fit_is_one_sentence(command: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_jobs(command.split(), False, None)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and sentence.endswith((".", "?"))
    for text in REFUSED[command]:
        assert text in sentence, sentence


def test_control_tasks_have_no_pairs() -> None:
    """An algorithm of one's own whose yaml does not choose the sampler meets the task's own check."""
    task, _ = build(compose_jobs([], False, None)[0].config)
    pairs = Requirements(gamma=1.0, critic=False, num_minibatches=1, reference="algo=mine", pairs=True)
    with pytest.raises(ConfigError, match="algorithm: learns from stored pairs of answers, which control tasks lack"):
        task.validate(pairs)
