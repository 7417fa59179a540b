"""Running the command line as a user does, in its own process, and reading what it left."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from forked import server

TINY = ["task=cartpole", "task.num_envs=2", "task.num_steps=32", "num_iterations=6", "eval_every=3", "gradvar_every=2"]
TINY += ["task.num_eval_episodes=2", "update.num_minibatches=4"]


def start(words: list[str], cwd: Path, **kwargs) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rgpo.cli.run", *words]
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def ended(words: list[str], cwd: Path) -> tuple[int | None, str, str]:
    """Exit code, stdout and stderr of a run; in a forked process where one fits, which is ten times faster to start."""
    if server().fits():
        return server().run(words, cwd)
    process = start(words, cwd)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def rgpo_run(words: list[str], cwd: Path, code: int = 0) -> str:
    """stdout and stderr of a run that must end with the exit code."""
    found, out, err = ended(words, cwd)
    assert found == code, out + err
    return out + err


def the_run(results: Path) -> Path:
    """The only run folder below results."""
    folders = [file.parent for file in results.rglob("config.yaml") if "/." not in str(file.relative_to(results))]
    assert len(folders) == 1, folders
    return folders[0]


def rows(run_dir: Path) -> pd.DataFrame:
    """A finished run's metrics without the columns that read a clock or count attempts."""
    frame = pd.read_parquet(run_dir / "metrics.parquet")
    return frame[[name for name in frame if not name.startswith(("time/", "speed/")) and name != "attempt"]]


def parameters(run_dir: Path) -> torch.Tensor:
    return checkpoint_of(run_dir)["policy"]


def checkpoint_of(run_dir: Path) -> dict:
    """A run's last checkpoint, without the check of its digest."""
    data = (run_dir / "checkpoint.pt").read_bytes()
    return torch.load(io.BytesIO(data[data.index(b"\n") + 1 :]), weights_only=True)
