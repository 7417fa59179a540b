"""`rgpo-run task=qwen_rlhf` as a user runs it, on tiny checkpoints in the real format."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cli import checkpoint_of, rgpo_run, rows, start, the_run
from pair_files import line, write
from safetensors.torch import load_file, save_file
from test_resume import wait_for_iteration
from tiny_models import write_model, write_reward_model

from rgpo.runtime import schema


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    write_reward_model(folder / "reward")
    write(folder / "hh.jsonl.gz", *[line(f"\n\nHuman: what is {i}?") for i in range(60)])
    return folder


def words(parts: Path, *more: str) -> list[str]:
    source = {"model": parts / "model", "data": parts / "hh.jsonl.gz", "reward_model": parts / "reward", "heldout_share": 0.3}
    source |= {"dtype": "float32", "reward_dtype": "float32", "device": "cpu"}
    task = {"num_prompts": 4, "group_size": 2, "max_new_tokens": 8, "num_eval_prompts": 8, "num_samples": 3}
    run = ["task=qwen_rlhf", "scale=paper", "num_iterations=4", "eval_every=2", "checkpoint_every_s=0"]
    return [*run, *(f"task.source.{k}={v}" for k, v in source.items()), *(f"task.{k}={v}" for k, v in task.items()), *more]


CASES = {
    "rgpo-full-stale": [
        "algo=rgpo",
        "update.lr=1e-2",
        "task.lora=null",
        "task.staleness=1",
        "task.micro_batch_size=3",
        "gradvar_every=2",
        "task.log_rollouts_every=2",
    ],
    "trpo-lora": ["algo=trpo", "task.lora.rank=2", "task.gradient_checkpointing=true"],
    "grpo-checkpointing": ["algo=grpo", "update.lr=1e-2", "task.lora.rank=2", "task.gradient_checkpointing=true"],
}


@pytest.mark.parametrize("name", CASES)
def test_killed_run_equals_uninterrupted(name: str, parts: Path, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints, inside the generation or the epochs over a batch: nothing differs afterwards."""
    command = words(parts, *CASES[name])
    said = rgpo_run([*command, "results_dir=whole"], tmp_path)
    assert "scale paper" in said and "reward model on 8 held-out prompts" in said and "before" in said
    process = start([*command, "results_dir=killed"], tmp_path)
    wait_for_iteration(tmp_path / "killed", 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    rgpo_run([*command, "results_dir=killed"], tmp_path)
    whole, killed = the_run(tmp_path / "whole"), the_run(tmp_path / "killed")
    pd.testing.assert_frame_equal(rows(killed), rows(whole), check_exact=True)
    ours, theirs = (checkpoint_of(run)["policy"] for run in (killed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    samples = [pd.read_parquet(run / "samples.parquet") for run in (killed, whole)]
    pd.testing.assert_frame_equal(*samples)
    assert samples[0].groupby("iteration").prompt_id.apply(list).to_dict() == {i: [0, 1, 2] for i in (0, 2, 4)}
    frame = rows(whole)
    if "task.log_rollouts_every=2" in command:
        ours, theirs = (pd.read_parquet(run / "rollouts.parquet") for run in (killed, whole))
        pd.testing.assert_frame_equal(ours.drop(columns="run_id"), theirs.drop(columns="run_id"))
        assert_rollouts_are_those_learned_from(theirs, frame)
    assert set(frame["scale"]) == {"paper"} and (frame["env_steps"].diff().dropna() == frame["language/num_tokens"][1:]).all()
    assert frame["kl/ref_exact"].iloc[-1] > 0 and frame["kl/ref_k1"].iloc[0] == 0
    assert frame["reward/eval_proxy_mean"].notna().tolist() == [False, True, False, True]


def assert_rollouts_are_those_learned_from(rollouts: pd.DataFrame, frame: pd.DataFrame) -> None:
    """Iterations 2 and 4 of four, 4 prompts x 2 completions each, and their means are the iteration's metrics."""
    assert set(rollouts) == set(schema.ROLLOUTS)
    assert rollouts.groupby("iteration").completion_id.apply(list).to_dict() == {i: [*range(8)] for i in (2, 4)}
    assert rollouts.groupby(["iteration", rollouts.completion_id // 2]).prompt.nunique().eq(1).all()
    metrics = frame.set_index("iteration").loc[[2, 4]]
    means = rollouts.groupby("iteration")[["reward", "length", "finished"]].mean()
    np.testing.assert_allclose(means["reward"], metrics["reward/train_mean"], rtol=1e-5)
    np.testing.assert_allclose(means["length"], metrics["language/length_mean"], rtol=1e-6)
    np.testing.assert_allclose(1 - means["finished"], metrics["language/truncated_share"], atol=1e-6)
    tokens = rollouts.groupby("iteration")[["kl_ref", "length"]].sum()
    np.testing.assert_allclose(tokens["kl_ref"] / tokens["length"], metrics["kl/ref_k1"], rtol=1e-4, atol=1e-6)
    weighted = (rollouts["advantage"] * rollouts["length"]).groupby(rollouts["iteration"]).sum() / tokens["length"]
    np.testing.assert_allclose(weighted, metrics["advantage/mean"], rtol=1e-4, atol=1e-5)


def test_a_reward_that_is_not_a_number_ends_the_run_with_a_sentence(parts: Path, tmp_path: Path) -> None:
    reward = write_reward_model(tmp_path / "broken")
    tensors = load_file(reward / "model.safetensors")
    tensors["score.weight"][:] = float("nan")
    save_file(tensors, reward / "model.safetensors", {"format": "pt"})
    said = rgpo_run(words(parts, "algo=grpo", f"task.source.reward_model={reward}"), tmp_path, code=1)
    assert "iteration 1: reward: " in said and "gives nan" in said and "Traceback" not in said
    state = json.loads((the_run(tmp_path / "results") / "state.json").read_text())
    assert state["status"] == "failed"


def test_a_run_whose_groups_have_one_reward_each_reports_that(parts: Path, tmp_path: Path) -> None:
    reward = write_reward_model(tmp_path / "constant")
    tensors = load_file(reward / "model.safetensors")
    tensors["score.weight"][:] = 0.0
    save_file(tensors, reward / "model.safetensors", {"format": "pt"})
    for algo in ("grpo", "rgpo"):
        said = rgpo_run(words(parts, f"algo={algo}", "num_iterations=2", f"task.source.reward_model={reward}"), tmp_path)
        assert "there was nothing to learn from the reward" in said and "no gate can matter" not in said


BAD: dict[str, tuple[list[str], str]] = {
    "exact KL": (
        ["algo=p3o", "penalty.anchor=old", "penalty.estimator=exact"],
        "penalty.estimator=exact: is known at some tokens only",
    ),
    "exact from reference": (["algo=p3o", "penalty.estimator=exact"], "penalty.anchor=reference: the exact KL is from the old"),
    "no critic to center for": (["algo=grpo", "task.center_scores=true"], "task.center_scores=true: would be ignored"),
    "no critic to clip": (["algo=grpo", "update.clip_jointly=true"], "update.clip_jointly=true: would be ignored"),
    "no clip": (
        ["algo=ppo", "update.max_grad_norm=null", "update.clip_jointly=true"],
        "update.clip_jointly=true: would be ignored",
    ),
    "group of one": (["algo=grpo", "task.group_size=1"], "task.group_size=1: a group needs at least 2"),
    "minibatches": (["algo=grpo", "update.num_minibatches=3"], "update.num_minibatches=3: does not divide the batch of 8"),
    "compile": (["algo=grpo", "update.compile=true"], "update.compile=True: language models are not compiled"),
    "temperature": (["task.temperature=0"], "task.temperature=0: must be a number from 0.01 to 100"),
    "ratio": (["task.ratio=word"], "task.ratio=word: must be token, sequence,"),
    "model": (["task.source.model=/nowhere"], "task.source.model=/nowhere: there is no such folder"),
    "data": (["task.source.data=/nowhere.jsonl"], "/nowhere.jsonl"),
    "scale": (
        ["scale=huge"],
        "scale=huge: is not an option of the group scale. The options are embedded, nanorlhf, paper,",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_words_are_one_sentence_before_anything_starts(name: str, parts: Path, tmp_path: Path) -> None:
    extra, sentence = BAD[name]
    said = rgpo_run(words(parts, *extra), tmp_path, code=2)
    assert sentence in said and said.count("\n") == 1, said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["task.num_prompts=100"], "task.num_prompts=100: there are only"),
        (["task.lora.target_modules=[nothing]"], "task.lora.target_modules="),
    ],
)
def test_what_only_loading_shows_is_a_sentence_too(extra: list[str], sentence: str, parts: Path, tmp_path: Path) -> None:
    said: Any = rgpo_run(words(parts, *extra), tmp_path, code=2)
    assert sentence in said and "Traceback" not in said


def test_a_signal_before_the_first_iteration_stops_at_once(parts: Path, tmp_path: Path) -> None:
    process = start(words(parts, "algo=grpo", "num_iterations=200"), tmp_path)
    while not list(tmp_path.rglob("state.json")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # while models are loaded
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, out + err
    (state,) = tmp_path.rglob("state.json")
    assert json.loads(state.read_text())["status"] == "interrupted"


def test_a_cache_that_cannot_be_written_is_named(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RGPO_CACHE", str(tmp_path / "file"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # importing transformers makes torch set it
    for needs_it in (["task=qwen_rlhf"], ["task=cartpole", "update.compile=true"]):
        said = rgpo_run([*needs_it, "num_iterations=1"], tmp_path, code=2)
        assert f"RGPO_CACHE={tmp_path / 'file'}: cannot write there" in said and "Traceback" not in said
    rgpo_run(words(parts, "algo=grpo"), tmp_path)  # uncompiled, with models of its own: needs no cache


def test_a_seed_that_no_column_holds_is_refused(tmp_path: Path) -> None:
    assert "at most 9223372036854775807" in rgpo_run(["seed=99999999999999999999"], tmp_path, code=2)
