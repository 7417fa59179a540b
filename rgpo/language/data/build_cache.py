"""Folders that are built once on a machine, whole or not at all, and verified whenever they are used.

Beside what its builder writes, a folder has report.json (what the builder found, seconds, versions, fingerprint) and stamp.json
(what was wanted, and the sha256 of every other file but the report).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rgpo.errors import ConfigError
from rgpo.language.data.pypi_archive import sha256_of

Say = Callable[[str], None]
VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "scipy")


def named(cache: Path, name: str, wanted: Mapping[str, Any]) -> Path:
    """The folder of what is wanted: <cache>/<name>-<8 hex digits of it>."""
    return cache / f"{name}-{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]}"


def build_once(
    folder: Path, wanted: Mapping[str, Any], build: Callable[[Path], dict[str, Any]], say: Say, lock: str, what: str
) -> dict[str, Any]:
    """The report of a folder, after build(an empty place) if it is not there or damaged; one process builds, others wait.

    ConfigError if the folder above cannot be written.
    """
    if not _intact(folder):
        with _lock(folder.parent, lock, say, what):
            if not _intact(folder):  # nobody else built it while we waited
                _build_aside(folder, wanted, build, say, what)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


@contextmanager
def _lock(cache: Path, name: str, say: Say, what: str) -> Iterator[None]:
    """Wait until no other process builds; the kernel lets go of the lock however a process dies."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / f".{name}.lock").open("w")
    except OSError as error:
        raise ConfigError(
            f"RGPO_CACHE={cache}: cannot write there ({error.strerror}); set RGPO_CACHE to a folder that can be written."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{what}: another process builds it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file but the report and the stamp."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("stamp.json", "report.json"))
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def _intact(folder: Path) -> bool:
    """Whether the folder is complete and its files are those that were written."""
    try:
        stamp = json.loads((folder / "stamp.json").read_text())
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return bool(stamp["sha256"] == _digests(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build_aside(folder: Path, wanted: Mapping[str, Any], build: Callable[[Path], dict[str, Any]], say: Say, what: str) -> None:
    """Build in a hidden folder beside and rename it; the lock is held, so a hidden folder that is there is a dead process's."""
    aside = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(aside, ignore_errors=True)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    report = build(aside)
    sha256 = _digests(aside)
    report["fingerprint"] = hashlib.sha256(json.dumps(sha256).encode()).hexdigest()
    report["versions"] = {name: importlib.metadata.version(name) for name in VERSIONS}
    report["cpu_s"], report["wall_s"] = time.process_time() - cpu_s, time.monotonic() - wall_s
    (aside / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (aside / "stamp.json").write_text(json.dumps({**wanted, "sha256": sha256}, indent=1) + "\n")
    if folder.exists():
        say(f"{what}: {folder} was damaged and is replaced")
        shutil.rmtree(folder)
    aside.rename(folder)
