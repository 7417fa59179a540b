"""Uninterrupted runs, which all cases of a campaign share; each is made once, by the case that needs it first."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import operations
from .commands import command, rgpo_run

TINY = ["task=cartpole", "task.num_envs=2", "task.num_steps=32", "num_iterations=6", "eval_every=3", "gradvar_every=2"]
TINY += ["task.num_eval_episodes=2", "update.num_minibatches=4", "checkpoint_every_s=0", "update.compile=false"]
COMPILED = [word for word in TINY if not word.startswith("update.compile=")] + ["update.compile=true"]
A2C = [word for word in TINY if not word.startswith("update.")]
TRPO = [*A2C, "update.critic_minibatches=4"]
LANGUAGE = ["task=qwen_rlhf", "scale=paper", "algo=rgpo", "num_iterations=3", "eval_every=2", "checkpoint_every_s=0"]
LANGUAGE += ["task.num_prompts=4", "task.group_size=2", "task.max_new_tokens=8", "task.num_eval_prompts=8", "task.num_samples=3"]
LANGUAGE += ["task.lora.rank=2", "task.source.heldout_share=0.3", "task.source.dtype=float32", "gradvar_every=0"]
LANGUAGE += ["task.source.reward_dtype=float32", "task.source.device=cpu", "update.compile=false"]
CONFIGS = {
    "ppo": ["algo=ppo", *TINY],
    "rgpo": ["algo=rgpo", *TINY],
    "a2c": ["algo=a2c", *A2C],
    "trpo": ["algo=trpo", *TRPO],
    "language": LANGUAGE,
    "sweep": ["-m", "algo=ppo", *TINY, "num_iterations=4", "seed=1,2"],
    "joblib": ["-m", "algo=ppo", *TINY, "num_iterations=4", "seed=1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "compiled": ["algo=ppo", *COMPILED],
}


class Whole(NamedTuple):
    """An uninterrupted run: its results folder, how long it took, and its number of disk operations."""

    results: Path
    seconds: float
    operations: int


def once(shared: Path, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, made once by whichever process needs it first."""
    ready = shared / name
    with (shared / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            unready = shared / f".{name}.unready"
            shutil.rmtree(unready, ignore_errors=True)
            unready.mkdir()
            make(unready)
            unready.rename(ready)
    return ready


def words(shared: Path, config: str) -> list[str]:
    """The words of a configuration."""
    more = []
    if config == "language":
        tiny = once(shared, "tiny-language", _write_language)
        more = [f"task.source.{key}={tiny / name}" for key, name in (("model", "model"), ("reward_model", "reward"))]
        more += [f"task.source.data={tiny / 'hh.jsonl.gz'}"]
    return [*CONFIGS[config], *more]


def env(shared: Path, config: str) -> dict[str, str]:
    """The environment of a configuration: compilation gets a cache that nobody has filled."""
    return {"RGPO_CACHE": str(shared / f"cache-{time.monotonic_ns()}")} if config == "compiled" else {}


def whole(shared: Path, config: str) -> Whole:
    """The uninterrupted run of a configuration.

    Raises: AssertionError if it fails, without which no case of this configuration can be judged.
    """

    def make(folder: Path) -> None:
        (folder / "here").mkdir()
        count = operations.counting(folder / "here" / "results", folder / "operations")
        start = time.monotonic()
        ended = rgpo_run(words(shared, config), folder / "here", env=env(shared, config), first=count, patience_s=300)
        assert ended.code == 0, f"the uninterrupted run of {config} failed: {ended}"
        facts = {"seconds": time.monotonic() - start, "operations": int((folder / "operations").read_text())}
        (folder / "facts.json").write_text(json.dumps(facts))

    made = once(shared, f"whole-{config}", make)
    return Whole(made / "here" / "results", **json.loads((made / "facts.json").read_text()))


def _write_language(folder: Path) -> None:
    """Random checkpoints and a few prompts, those of the tests."""

    def write_all() -> None:
        from pair_files import line, write
        from tiny_models import write_model, write_reward_model

        write_model(folder / "model")
        write_reward_model(folder / "reward")
        write(folder / "hh.jsonl.gz", *[line(f"\n\nHuman: what is {i}?") for i in range(60)])

    ended = command(write_all, ("write tiny checkpoints",), folder)
    assert ended.code == 0, ended
