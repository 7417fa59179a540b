"""The public Python API: runs from their folders, evaluated again, and results as one table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from cli import checkpoint_of
from test_api import ROOT, SHORT
from test_api import ppo as ppo
from test_api import results_dir as results_dir

import rgpo
from rgpo.runtime import schema

OLD_RUN = ROOT / "results" / "archive" / "rlhf_embedded" / "qwen_rlhf-rgpo_signed-s1-af0b18a9"


def test_a_finished_run_is_what_its_folder_holds(ppo: rgpo.Run) -> None:
    assert ppo.status == "completed" and ppo.folder.is_absolute()
    assert repr(ppo) == f"Run('{ppo.folder}': completed, iteration 5 of 5)"
    assert ppo.config == yaml.safe_load((ppo.folder / "config.yaml").read_text())
    stored = pd.read_parquet(ppo.folder / "metrics.parquet")
    frame = ppo.metrics
    assert {*schema.GLOSSARY} & {*stored.columns} == {*frame.columns} - {"attempt", "iteration", "env_steps"}
    for name in frame:
        np.testing.assert_array_equal(np.stack(frame[name]), np.stack(stored[name]))  # float32 is exact in float64
    assert frame.dtypes[["attempt", "iteration", "env_steps"]].eq("int64").all()
    assert len(ppo.samples) == 0 and list(ppo.samples) == list(schema.SAMPLES)


def test_evaluate_repeats_the_last_evaluation_bit_for_bit(ppo: rgpo.Run) -> None:
    run, last = rgpo.load(ppo.folder), ppo.metrics.iloc[-1]
    first = run.evaluate()
    assert {name: np.float32(value) for name, value in first.items()} == {name: last[name] for name in first}
    assert {*first} == {"return/eval_mean", "return/eval_std"}
    assert run.evaluate(num_episodes=3) == first
    more = run.evaluate(num_episodes=8)
    assert more != first and run.evaluate() == first and run.evaluate(8) == more
    run.policy.load_state_dict({"flat": torch.zeros_like(run.policy.flat)})  # evaluated as it is now, not as it was stored
    assert run.evaluate() != first and run.evaluate(8) != more
    with pytest.raises(rgpo.ConfigError, match=r"task.num_eval_episodes=0: must be a positive whole number"):
        run.evaluate(0)


def test_the_normalizers_of_the_run_are_used(results_dir: Path, ppo: rgpo.Run) -> None:
    run = rgpo.run("algo=ppo", *SHORT, "task.normalize_observation=true", f"results_dir={results_dir}")
    loaded = rgpo.load(run.folder)
    assert np.float32(loaded.evaluate()["return/eval_mean"]) == run.metrics["return/eval_mean"].iloc[-1]
    first = loaded.evaluate(6)
    loaded.task.normalize.mean += 1.0
    assert loaded.evaluate(6) != first


def test_parts_have_the_state_of_the_checkpoint(ppo: rgpo.Run) -> None:
    saved = checkpoint_of(ppo.folder)
    run = rgpo.load(ppo.folder)
    assert torch.equal(run.policy.flat, saved["policy"]["flat"]) and run.task.state_dict() == saved["task"]
    adam = run.algorithm.state_dict()["update"]["optimizer"]
    assert adam["num_steps"] == saved["algorithm"]["update"]["optimizer"]["num_steps"] == 5 * 4 * 4
    assert all(map(torch.equal, adam["adam"], saved["algorithm"]["update"]["optimizer"]["adam"]))
    assert run.algorithm.describe()["gate"] == "Clip(eps_low=0.2, eps_high=0.2)"


def test_folders_without_a_run_or_a_fitting_checkpoint_are_refused(ppo: rgpo.Run, tmp_path: Path) -> None:
    with pytest.raises(rgpo.ConfigError, match=r"config\.yaml is missing; give the folder of a run"):
        rgpo.load(tmp_path)
    folder = tmp_path / "renamed"
    shutil.copytree(ppo.folder, folder)
    assert rgpo.load(folder).evaluate() == rgpo.load(ppo.folder).evaluate()  # by any name
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("metrics: {}", "metrics: 3"))
    with pytest.raises(rgpo.ConfigError, match=r"renamed: config\.yaml is damaged \(checksum\)"):
        rgpo.load(folder)
    (folder / "manifest.json").unlink()  # as for a run of an earlier version
    (folder / "config.yaml").write_text(text.replace("lr: 0.0005", "lr: 0.0006"))
    with pytest.raises(rgpo.ConfigError, match=r"checkpoint\.pt: was written by config \w+, this run is \w+"):
        _ = rgpo.load(folder).algorithm
    (folder / "config.yaml").write_text(text.replace("env_kwargs: {}", "env_kwargs: {api_key: '[redacted]'}"))
    with pytest.raises(rgpo.ConfigError, match=r"config\.yaml has no value of task\.env_kwargs\.api_key; repeat the command"):
        _ = rgpo.load(folder).algorithm
    (folder / "config.yaml").write_text(text)
    saved = checkpoint_of(folder)
    torch.save(saved | {"format": 4}, folder / "checkpoint.pt")
    with pytest.raises(rgpo.ConfigError, match=r"checkpoint\.pt: is not a checkpoint of this version \(format \d+\)"):
        rgpo.load(folder).evaluate()
    (folder / "config.yaml").write_text(text.replace("metrics: {}", "metrics: 3"))
    with pytest.raises(rgpo.ConfigError, match=r"renamed: metrics=3: must map names to"):
        _ = rgpo.load(folder).metrics
    (folder / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(rgpo.ConfigError, match=r"config\.yaml has no choices and seed"):
        rgpo.load(folder)


def test_results_are_one_table(ppo: rgpo.Run, tmp_path: Path) -> None:
    new = tmp_path / "new" / ppo.folder.name
    shutil.copytree(ppo.folder, new)
    shutil.copytree(OLD_RUN, tmp_path / "old" / OLD_RUN.name)
    shutil.copytree(ppo.folder, tmp_path / "new" / f".{ppo.folder.name}.old1")  # set aside by force=true
    shutil.copytree(ppo.folder, tmp_path / "new" / "cartpole-ppo-s2-00000000")
    (tmp_path / "new" / "cartpole-ppo-s2-00000000" / "metrics.parquet").write_bytes(b"half a file")
    not_started = tmp_path / "new" / "cartpole-ppo-s3-00000000"
    not_started.mkdir()
    (not_started / ".lock").touch()
    with pytest.warns(
        UserWarning, match=r"cartpole-ppo-s2-00000000: metrics\.parquet is damaged \(checksum\)\. The run is left out"
    ) as seen:
        table = rgpo.results(tmp_path, columns=["gate.sharpness", "update.lr", "task.policy.hidden_sizes"])
    assert len(seen) == 1
    identity = ["experiment", "run_id", "task", "scale", "algo", "gate", "seed", "status"]
    assert list(table)[:11] == [*identity, "gate.sharpness", "update.lr", "task.policy.hidden_sizes"]
    assert table.iteration.tolist() == [*range(1, 6), *range(1, 61)]
    row, old = table.iloc[0], table.iloc[-1]
    assert [*row[identity]] == ["new", ppo.folder.name, "cartpole", "none", "ppo", "clip", 1, "completed"]
    facts = ["old", OLD_RUN.name, "qwen_rlhf", "embedded", "rgpo_sign_aware", "sign_aware_sigmoid", 1, "completed"]
    assert [*old[identity]] == facts
    assert row["update.lr"] == 5e-4 and np.isnan(row["gate.sharpness"]) and old["gate.sharpness"] == 10.0
    assert row["task.policy.hidden_sizes"] == [64, 64] and old["task.policy.hidden_sizes"] is None
    stored = pd.read_parquet(OLD_RUN / "metrics.parquet")
    share = table["language/zero_variance_group_share"]
    np.testing.assert_array_equal(share[table.experiment == "old"], stored["language/dead_group_share"])
    assert share[table.experiment == "new"].isna().all() and "language/dead_group_share" not in table
    one = rgpo.results(tmp_path / "old")  # one experiment
    pd.testing.assert_series_equal(one["reward/train_mean"], table["reward/train_mean"][5:].reset_index(drop=True))


def test_results_refuse_what_is_not_there(ppo: rgpo.Run, results_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(rgpo.ConfigError, match=r"columns=update\.learning_rate: no run has such a config key"):
        rgpo.results(results_dir, columns=["update.learning_rate"])
    with pytest.raises(rgpo.ConfigError, match="contains no run that can be read"):
        rgpo.results(tmp_path)
    with pytest.raises(rgpo.ConfigError, match="nowhere: is no folder"):
        rgpo.results(tmp_path / "nowhere")


def test_a_language_run_evaluates_on_held_out_prompts(tmp_path: Path) -> None:
    from pair_files import line, write
    from tiny_models import write_model, write_reward_model

    parts = {"model": write_model(tmp_path / "model"), "reward_model": write_reward_model(tmp_path / "reward")}
    parts["data"] = write(tmp_path / "hh.jsonl", *[line(f"\n\nHuman: what is {i}?") for i in range(40)])
    words = ["algo=grpo", "task=qwen_rlhf", "scale=paper", "num_iterations=2", "eval_every=1", "task.lora.rank=2"]
    words += [f"task.source.{key}={value}" for key, value in parts.items()]
    words += ["task.source.heldout_share=0.3", "task.source.dtype=float32", "task.source.reward_dtype=float32"]
    words += ["task.source.device=cpu", "task.num_prompts=4", "task.group_size=2", "task.max_new_tokens=8"]
    words += ["task.num_eval_prompts=8", "task.num_samples=3", f"results_dir={tmp_path / 'results'}"]
    run = rgpo.run(*words)
    loaded, last = rgpo.load(run.folder), run.metrics.iloc[-1]
    found = loaded.evaluate()
    assert found == loaded.evaluate() and "reward/eval_proxy_mean" in found and "kl/eval_ref_sequence" in found
    assert {name: np.float32(value) for name, value in found.items()} == {name: np.float32(last[name]) for name in found}
    assert loaded.samples.groupby("iteration").prompt_id.apply(list).to_dict() == {i: [0, 1, 2] for i in (0, 1, 2)}
    with pytest.raises(rgpo.ConfigError, match="num_episodes=5: this task has no evaluation episodes"):
        loaded.evaluate(5)
