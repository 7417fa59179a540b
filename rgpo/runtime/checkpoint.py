"""Checkpoints hold everything for a bit-exact resume. The last two are kept, and a digest is verified before loading."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import IO, NamedTuple, TypedDict, cast

from rgpo import atomic
from rgpo.errors import ConfigError
from rgpo.learning.types import State
from rgpo.runtime import reader

NAME, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
FORMAT = 6
HEADER = "rgpo checkpoint, sha256 {}\n"  # digest of the rest of the file, which torch.save wrote
HEADER_BYTES = len(HEADER.format(64 * "0"))
VALID_HEADER = re.compile(HEADER.format("([0-9a-f]{64})").encode())
EARLIER = b"PK\x03\x04"  # first bytes of formats before 6, which had no header (a zip archive)
END, END_BYTES = b"PK\x05\x06", 22  # end record of the zip archive that torch.save writes
MAX_BYTES = 1 << 50
REMEDY = "use force=true to start again (the old folder is moved aside) or another results_dir."


class Checkpoint(TypedDict):
    """The contents of checkpoint.pt, after ``iteration`` iterations."""

    config_hash: str
    num_processes: int
    num_threads: int
    iteration: int
    env_steps: int
    num_samples: int  # rows of samples and rollouts so far
    ratio_moved: float  # nats; largest |log ratio| at which a gradient was taken
    informative: bool  # whether any iteration had a learning signal, see runner.is_informative
    policy: State
    algorithm: State
    task: State


class Found(NamedTuple):
    """The checkpoint to continue from (None: start over), its file name, and one clause per file that could not be used."""

    checkpoint: Checkpoint | None
    name: str
    damage: dict[str, str]


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint atomically; the previous one is kept as checkpoint-previous.pt.

    Raises: StorageError if the disk is full or the folder is not writable.
    """
    import torch

    buffer = io.BytesIO(bytes(HEADER_BYTES))  # in memory first, since torch.save would hide the OSError of a full disk
    buffer.seek(HEADER_BYTES)
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    data = buffer.getbuffer()
    data[:HEADER_BYTES] = HEADER.format(hashlib.sha256(data[HEADER_BYTES:]).hexdigest()).encode()
    with atomic.storing(run_dir):
        atomic.write_bytes(run_dir / NAME, data, fsync=True, keep=run_dir / PREVIOUS)


def load(run_dir: Path, config_hash: str) -> Checkpoint | None:
    """The run's last checkpoint or, with a warning, the previous one if the last is damaged; None if there is none.

    Raises: ConfigError if none is intact, or if one was written by another version or for another configuration.
    """
    found = find(run_dir, config_hash)
    for why in found.damage.values():
        warnings.warn(f"{run_dir}: {why}; {found.name} is used.", stacklevel=2)
    return found.checkpoint


def find(run_dir: Path, config_hash: str, usable: Callable[[Checkpoint], bool] = lambda checkpoint: True) -> Found:
    """The last checkpoint that is intact and usable.

    Raises: ConfigError if all are damaged, or if one was written by another version or for another configuration.
    """
    damage: dict[str, str] = {}
    intact = missing = 0
    for name in (NAME, PREVIOUS):
        try:
            checkpoint = read(run_dir / name, config_hash)
        except reader.Missing:
            missing += 1
        except reader.Unreadable as error:
            damage[name] = str(error)
        else:
            intact += 1
            if usable(checkpoint):
                if missing:
                    damage[NAME] = f"{NAME} is missing"
                return Found(checkpoint, name, damage)
    if damage and not intact:
        raise ConfigError(f"{run_dir}: {', '.join(damage.values())}; {REMEDY}")
    return Found(None, "", damage)


def _is_intact(file: IO[bytes], header: bytes) -> bool:
    """True if the data after the header match its digest; hashed in chunks, since a damaged file may be larger than memory."""
    stored = VALID_HEADER.fullmatch(header)
    if stored is None or file.seek(0, os.SEEK_END) < HEADER_BYTES + END_BYTES:
        return False
    file.seek(-END_BYTES, os.SEEK_END)
    if not file.read().startswith(END):  # quick check, which also catches appended data
        return False
    file.seek(HEADER_BYTES)
    intact = hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest() == stored[1].decode()
    file.seek(HEADER_BYTES)
    return intact


def read(path: Path, config_hash: str) -> Checkpoint:
    """Read one checkpoint file.

    Raises: Unreadable if it is damaged; Missing if it does not exist; ConfigError if its version or configuration is different.
    """
    import torch

    with reader.opened(path, MAX_BYTES) as file:
        try:
            header = file.read(HEADER_BYTES)
            earlier = header.startswith(EARLIER)
            if not earlier and not _is_intact(file, header):
                raise reader.Unreadable(f"{path.name} is damaged (checksum)")
            payload = b"" if earlier else file.read()
        except OSError as error:
            raise reader.Unreadable(f"{path.name} cannot be read ({error.strerror})") from error
    found: object = None
    if not earlier:
        try:
            found = torch.load(io.BytesIO(payload), weights_only=True)
        except Exception as error:  # intact, so probably from another version of torch
            raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); {REMEDY}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not Checkpoint.__required_keys__ <= set(found):
        raise ConfigError(f"{path}: is not a checkpoint of this version (format {FORMAT}); {REMEDY}")
    if found["config_hash"] != config_hash:
        raise ConfigError(f"{path}: was written by config {found['config_hash']}, this run is {config_hash}; {REMEDY}")
    return cast(Checkpoint, found)
