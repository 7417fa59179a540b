"""Checkpoints: everything a bit-exact resume needs, written aside, synced and renamed, loaded without running code."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from rgpo.errors import ConfigError

NAME = "checkpoint.pt"
FORMAT = 4


def save(run_dir: Path, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint atomically. OSError if the folder is full or not writable."""
    import torch

    buffer = io.BytesIO()  # torch would turn a full disk into an error of its own
    torch.save({"format": FORMAT, **state}, buffer)
    aside = run_dir / f".{NAME}.writing"
    try:
        with aside.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(run_dir / NAME)
    except OSError:
        aside.unlink(missing_ok=True)  # half a checkpoint only takes the room that state.json needs
        raise


def load(run_dir: Path, config_hash: str) -> dict[str, Any] | None:
    """The run's checkpoint, None if there is none. ConfigError if it is damaged or belongs to another configuration."""
    import torch

    path = run_dir / NAME
    if not path.exists():
        return None
    remedy = "use force=true to start again (the old folder is moved aside) or another results_dir."
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}), it is truncated or damaged; {remedy}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path}: is not a checkpoint of this version (format {FORMAT}); {remedy}")
    if state["config_hash"] != config_hash:
        raise ConfigError(f"{path}: was written by config {state['config_hash']}, this run is {config_hash}; {remedy}")
    return state
