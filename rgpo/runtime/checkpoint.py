"""Checkpoints: everything a bit-exact resume needs, replaced atomically and loaded without running code."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypedDict, cast

from rgpo.atomic import write_bytes
from rgpo.errors import ConfigError
from rgpo.learning.types import State

NAME = "checkpoint.pt"
FORMAT = 5


class Checkpoint(TypedDict):
    """The contents of checkpoint.pt, after ``iteration`` iterations."""

    config_hash: str
    num_processes: int
    num_threads: int
    iteration: int
    env_steps: int
    ratio_moved: float  # nats; largest |log ratio| at which a gradient was taken
    informative: bool  # whether rewards differed between completions of a prompt in any iteration
    policy: State
    algorithm: State
    task: State


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint atomically.

    Raises: OSError if the disk is full or the folder is not writable.
    """
    import torch

    buffer = io.BytesIO()  # writing to a file, torch turns a full disk into an error of its own
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_bytes(run_dir / NAME, buffer.getbuffer(), fsync=True)


def load(run_dir: Path, config_hash: str) -> Checkpoint | None:
    """The run's checkpoint; None if there is none.

    Raises: ConfigError if it is damaged, of another version or of another configuration.
    """
    import torch

    path = run_dir / NAME
    if not path.exists():
        return None
    remedy = "use force=true to start again (the old folder is moved aside) or another results_dir."
    try:
        found: object = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}), it is truncated or damaged; {remedy}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ConfigError(f"{path}: is not a checkpoint of this version (format {FORMAT}); {remedy}")
    if found["config_hash"] != config_hash:
        raise ConfigError(f"{path}: was written by config {found['config_hash']}, this run is {config_hash}; {remedy}")
    return cast(Checkpoint, found)
