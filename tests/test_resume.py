"""A run that was stopped, in any way, ends as the uninterrupted one, bit for bit; nothing is lost and nothing doubled."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from cli import checkpoint_of, parameters, rgpo_run, rows, start, the_run

from rgpo.runtime import run_folder

COMMON = ["num_iterations=8", "eval_every=3", "gradvar_every=3", "checkpoint_every_s=0"]
CASES = {
    "hopper-ppo_kl-adaptive": [
        "task=hopper",
        "algo=ppo_kl",
        "gate=adaptive_sign_aware",
        "task.num_steps=256",
        "update.num_minibatches=4",
    ],
    "halfcheetah-trpo": ["task=halfcheetah", "algo=trpo", "task.num_steps=256", "task.num_envs=2", "update.critic_minibatches=4"],
    "pendulum-rgpo": ["task=pendulum", "algo=rgpo", "task.num_steps=64", "update.num_minibatches=4", "update.num_epochs=20"],
    "frozenlake-awr": ["task=gym", "task.env_id=FrozenLake-v1", "algo=awr", "task.num_steps=64", "update.num_epochs=40"],
    "hopper-compiled": ["task=hopper", "algo=rgpo", "task.num_steps=256", "update.num_minibatches=4", "update.compile=true"],
    "cartpole-sign_aware": ["task=cartpole", "algo=rgpo_sign_aware", "task.num_steps=32"],
}


def wait_for_iteration(run_dir_parent: Path, iteration: int, process, seconds: float = 240.0) -> None:
    """Return once state.json of the only run records a checkpoint of the iteration."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        for file in run_dir_parent.rglob("state.json"):
            if json.loads(file.read_text())["iteration"] >= iteration:
                return
        time.sleep(0.005)
    assert process.poll() is not None, "the run never got there"


@pytest.mark.parametrize("name", CASES)
def test_killed_run_equals_uninterrupted(name: str, tmp_path: Path) -> None:
    words = [*COMMON, *CASES[name]]
    rgpo_run([*words, "results_dir=whole"], tmp_path)
    for iteration in (2, 5):  # killed twice, each time somewhere after that iteration's checkpoint: in the next rollout
        process = start([*words, "results_dir=killed"], tmp_path)
        wait_for_iteration(tmp_path / "killed", iteration, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run_dir = the_run(tmp_path / "killed")
    if (run_dir / "metrics").is_dir():  # what was flushed is readable with plain pandas
        assert len(pd.read_parquet(run_dir / "metrics")) >= 2
    rgpo_run([*words, "results_dir=killed"], tmp_path)
    whole = the_run(tmp_path / "whole")
    pd.testing.assert_frame_equal(rows(run_dir), rows(whole), check_exact=True)
    assert rows(run_dir).iteration.tolist() == list(range(1, 9))
    assert torch.equal(parameters(run_dir)["flat"], parameters(whole)["flat"])
    assert "already complete" in rgpo_run([*words, "results_dir=killed"], tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_leaves(number: int, code: int, tmp_path: Path) -> None:
    words = [*COMMON, *CASES["pendulum-rgpo"], "checkpoint_every_s=1000", "num_iterations=400"]
    process = start(words, tmp_path)
    for line in process.stdout:
        if "results in" in line:
            break
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    run_dir = the_run(tmp_path / "results")
    state = json.loads((run_dir / "state.json").read_text())
    saved = checkpoint_of(run_dir)
    assert state["status"] == "interrupted" and saved["iteration"] == state["iteration"] > 0
    assert len(pd.read_parquet(run_dir / "metrics")) == state["iteration"]
    assert "interrupted" in rgpo_run([*words, "plan=true"], tmp_path)


def test_truncated_checkpoints_are_refused_and_force_starts_again(tmp_path: Path) -> None:
    words = [*COMMON, *CASES["pendulum-rgpo"], "num_iterations=2"]
    rgpo_run(words, tmp_path)
    run_dir = the_run(tmp_path / "results")
    for name in ("manifest.json", "state.json", "metrics.parquet"):
        (run_dir / name).unlink()
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (run_dir / name).write_bytes((run_dir / name).read_bytes()[:1000])
    message = rgpo_run(words, tmp_path, code=2)
    assert "checkpoint.pt is damaged (checksum), checkpoint-previous.pt is damaged (checksum); use force=true" in message
    assert "moved the earlier run" in rgpo_run([*words, "force=true"], tmp_path)
    assert json.loads((run_dir / "state.json").read_text())["status"] == "completed"


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    words = [*COMMON, *CASES["pendulum-rgpo"], "num_iterations=2"]
    rgpo_run(words, tmp_path)
    one = the_run(tmp_path / "results")
    other = rgpo_run([*words, "seed=9", "plan=true"], tmp_path).split("missing")[1].split()[0]
    (tmp_path / other).mkdir()
    (one / "checkpoint.pt").rename(tmp_path / other / "checkpoint.pt")
    assert "was written by config" in rgpo_run([*words, "seed=9"], tmp_path, code=2)


def test_two_processes_share_a_sweep(tmp_path: Path) -> None:
    words = ["-m", *COMMON, *CASES["pendulum-rgpo"], "seed=1,2"]
    both = [start(words, tmp_path) for _ in range(2)]
    outputs = ["".join(process.communicate(timeout=240)) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    frames = [pd.read_parquet(file) for file in (tmp_path / "results").rglob("metrics.parquet")]
    assert sorted(frame.seed[0] for frame in frames) == [1, 2] and all(len(frame) == 8 for frame in frames)


EXHAUSTS_MEMORY = """
import sys
import numpy as np
from rgpo.cli import run
from rgpo.control.task import Control
collect, calls = Control.collect, []
def too_much(self, policy):
    calls.append(1)
    return np.empty(2**57) if len(calls) == 2 else collect(self, policy)  # 2^60 bytes cannot be allocated anywhere
Control.collect = too_much
sys.exit(run.main())
"""


def test_a_full_memory_names_the_knob_and_keeps_what_was_measured(tmp_path: Path) -> None:
    words = [*CASES["cartpole-sign_aware"], "num_iterations=2", "checkpoint_every_s=0"]
    process = subprocess.run(
        [sys.executable, "-c", EXHAUSTS_MEMORY, *words], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    message = process.stderr
    assert process.returncode == 1 and message.count("\n") == 1, message
    assert "iteration 2: out of memory; lower task.num_" in message and "last good checkpoint is after iteration 1" in message
    run_dir = the_run(tmp_path / "results")
    assert len(pd.read_parquet(run_dir / "metrics")) == 1
    assert "out of memory" in json.loads((run_dir / "state.json").read_text())["reason"]


def test_force_moves_aside_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "exp" / "run"
    run_folder.prepare(run_dir, force=True)
    assert capsys.readouterr().out == "" and [path.name for path in run_dir.parent.iterdir()] == ["run"]
    (run_dir / "metrics.parquet").write_bytes(b"")
    run_folder.prepare(run_dir, force=True)
    assert "moved the earlier run to" in capsys.readouterr().out and (tmp_path / "exp/.run.old1/metrics.parquet").exists()


DIES = """
import os, sys
from rgpo.cli import run
from rgpo.runtime import run_folder
write = run_folder.write_state
run_folder.write_state = lambda *args, **facts: os._exit(9) if facts["status"] == "completed" else write(*args, **facts)
sys.exit(run.main())
"""


def test_a_run_that_dies_after_its_last_iteration_only_ends(tmp_path: Path) -> None:
    words = [*COMMON, *CASES["cartpole-sign_aware"]]
    rgpo_run([*words, "results_dir=whole"], tmp_path)
    died = subprocess.run(
        [sys.executable, "-c", DIES, *words, "results_dir=died"], cwd=tmp_path, capture_output=True, timeout=240
    )
    assert died.returncode == 9, died.stderr
    run_dir = the_run(tmp_path / "died")
    assert (run_dir / "metrics").exists() and run_folder.read_state(run_dir)["status"] == "running"
    assert "already complete" in rgpo_run([*words, "results_dir=died"], tmp_path)
    assert run_folder.read_state(run_dir)["status"] == "completed"
    assert not (run_dir / "metrics").exists()
    pd.testing.assert_frame_equal(rows(run_dir), rows(the_run(tmp_path / "whole")), check_exact=True)
