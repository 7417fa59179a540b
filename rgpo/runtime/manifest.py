"""Digests of a finished run's files, so that damage is detected before they are read.

manifest.json is written when a run completes and marks it as complete: state.json can be restored from it. Part files, which
exist only while a run is unfinished, have their digest in their name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO, TypedDict, cast

from rgpo import atomic
from rgpo.runtime import reader

NAME = "manifest.json"
FILES = (
    *("config.yaml", "provenance.json", "metrics.parquet", "samples.parquet", "rollouts.parquet"),
    *("checkpoint.pt", "checkpoint-previous.pt"),
)
EXPORTS = ("policy", "model")  # exported folders, whose files have digests, too
PART = re.compile(r"part-(\d{4,9})-\d{6,}(?:-([0-9a-f]{16}))?\.parquet")  # groups: attempt, digest (none in version 0.1)
MAX_BYTES, MAX_PART = 1 << 50, 1 << 30  # largest file and largest part file that are hashed


class Manifest(TypedDict):
    """The contents of manifest.json."""

    attempt: int
    num_iterations: int
    files: dict[str, str]  # name, or policy/name, -> sha256
    sizes: dict[str, int]  # the same names -> bytes
    sha256: str  # digest of the other keys


def write(run_dir: Path, attempt: int = 0, num_iterations: int = 0) -> None:
    """Write the digests of the run's files.

    Raises: Unreadable if a file cannot be read; OSError if the manifest cannot be written.
    """
    names = [name for name in FILES if (run_dir / name).exists()]
    exported = (path for folder in EXPORTS for path in sorted((run_dir / folder).rglob("*")) if path.is_file())
    names += [path.relative_to(run_dir).as_posix() for path in exported]
    files = {name: digest(run_dir / name) for name in names}
    sizes = {name: (run_dir / name).stat().st_size for name in files}
    facts = {"attempt": attempt, "num_iterations": num_iterations, "files": files, "sizes": sizes}
    atomic.write_text(run_dir / NAME, json.dumps({**facts, "sha256": _digest_of(facts)}, indent=1) + "\n", fsync=True)


def read(run_dir: Path) -> Manifest:
    """The run's manifest.

    Raises: Unreadable if it is damaged; Missing if there is none.
    """
    found = reader.read_json(run_dir / NAME, Manifest)
    facts = {key: value for key, value in found.items() if key != "sha256"}
    files = found.get("files", {})
    if found.get("sha256") != _digest_of(facts) or not all(map(_is_name, files)) or set(found.get("sizes", {})) != set(files):
        raise reader.Unreadable(f"{NAME} is damaged (checksum)")
    return found


def problems(run_dir: Path, names: Collection[str] | None = None) -> list[str]:
    """One clause for each damaged or missing file of a finished run; [] for a folder without a manifest.

    names: the files to check, None for all; hashing takes about a second per gigabyte.
    """
    return list(damage(run_dir, names).values())


def damage(run_dir: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """File name -> clause, for each damaged or missing file; as ``problems``."""
    try:
        expected = read(run_dir)
    except reader.Missing:
        return {}
    except reader.Unreadable as error:
        return {NAME: str(error)}
    digests, sizes = expected["files"], expected["sizes"]
    chosen = [name for name in digests if names is None or name in names]
    found = {name: _damage(run_dir / name, digests[name], MAX_BYTES, sizes[name]) for name in chosen}
    fits_none = names is None and len(chosen) > 1 and all(found.values())
    own = {NAME: f"{NAME} fits none of the files, as if it were another run's"} if fits_none else {}
    return own | {name: why for name, why in found.items() if why}


def export_damage(run_dir: Path, folder: str) -> dict[str, str]:
    """File name -> clause, for each damaged or missing file of an exported folder; {} if the run has no manifest."""
    try:
        names = [name for name in read(run_dir)["files"] if name.startswith(f"{folder}/")]
    except reader.Unreadable:
        names = []
    return damage(run_dir, names)


def part_damage(path: Path) -> str:
    """A clause if a part file does not match the digest in its name; "" if it matches or the name has no digest."""
    found = PART.fullmatch(path.name)
    return _damage(path, found[2], MAX_PART) if found and found[2] else ""


def part_name(attempt: int, number: int, data: bytes | memoryview) -> str:
    """The name of a part file with these contents, digest included."""
    return f"part-{attempt:04d}-{number:06d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"


def digest(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal.

    Raises: Unreadable if it cannot be read or is not a regular file; Missing if it does not exist.
    """
    with reader.opened(path, MAX_BYTES) as file:
        return _digest_of_file(path, file)


def _is_name(name: str) -> bool:
    """True for the name of a run's file or of one in its exported folders; never for a path outside the run's folder."""
    parts = PurePosixPath(name).parts
    return name in FILES or (len(parts) > 1 and parts[0] in EXPORTS and ".." not in parts)


def _damage(path: Path, sha256: str, limit: int, recorded: int = MAX_BYTES) -> str:
    """A clause if a file's digest differs, else ""; a file with more bytes than recorded is not read."""
    try:
        with reader.opened(path, limit) as file:
            size = os.fstat(file.fileno()).st_size
            if size > recorded:
                return f"{path.name} is damaged ({size:,} bytes, {recorded:,} were recorded)"
            return "" if _digest_of_file(path, file).startswith(sha256) else f"{path.name} is damaged (checksum)"
    except reader.Unreadable as error:
        return str(error)


def _digest_of_file(path: Path, file: IO[bytes]) -> str:
    try:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
    except OSError as error:
        raise reader.Unreadable.file(path, str(error.strerror)) from None


def _digest_of(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
