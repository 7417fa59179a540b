"""Cache of folders that are built once per machine, appear only when complete, and are verified on every use.

Besides the builder's files, a folder contains report.json (the builder's results, time, versions, and a fingerprint of those
files) and stamp.json (the settings, and the sha256 of every other file). Digests are compared on every use.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rgpo.atomic import locked, write_text
from rgpo.errors import ConfigError
from rgpo.language.assets import Log
from rgpo.language.data.pypi_archive import sha256_of

VERSIONS = ("torch", "transformers", "tokenizers", "numpy", "scipy")
Settings = Mapping[str, object]
BuildReport = dict[str, Any]  # contents of report.json
Builder = Callable[[Path, Log], BuildReport]  # creates and fills a folder, logs progress, and returns its results
POLL_S = 1.0  # time between attempts to acquire a lock


def artifact_folder(cache: Path, name: str, settings: Settings) -> Path:
    """<cache>/<name>-<first 8 hex digits of the settings' sha256>."""
    return cache / f"{name}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}"


def build_once(folder: Path, settings: Settings, build: Builder, log: Log, lock: str, what: str) -> BuildReport:
    """Return a folder's report, building the folder first if it is missing or damaged.

    Other processes wait for the one that is building, and log its id and its latest line of progress.

    Raises: ConfigError if the parent folder is not writable.
    """
    if not _is_intact(folder):
        with _build_lock(folder.parent, lock, log, what):
            if not _is_intact(folder):  # unless another process built it in the meantime
                with _shown_progress(_progress_file(folder.parent, lock), log) as shown:
                    _build_aside(folder, settings, build, shown, what)
    report: BuildReport = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


@contextmanager
def _build_lock(cache: Path, name: str, log: Log, what: str) -> Iterator[None]:
    file = cache / f".{name}.lock"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise ConfigError(
            f"RGPO_CACHE={cache}: cannot write there ({error.strerror}); set RGPO_CACHE to a folder that can be written."
        ) from error
    last: str | None = None
    while True:
        with locked(file, wait=False) as acquired:
            if acquired:
                yield
                return
        progress = _read_progress(_progress_file(cache, name))
        if last is None or progress not in (None, last):
            last = progress or "another process that builds it"
            log(f"{what}: waiting for {last}")
        time.sleep(POLL_S)


def _progress_file(cache: Path, name: str) -> Path:
    return cache / f".{name}.progress"


@contextmanager
def _shown_progress(file: Path, log: Log) -> Iterator[Log]:
    """A log that also writes its latest line, with process id and start time, to a file, which is deleted at the end."""
    who = f"process {os.getpid()} on {socket.gethostname()}, which builds it since {time.strftime('%H:%M:%S')}"

    def shown(line: str) -> None:
        write_text(file, f"{who}: {line}\n")
        log(line)

    write_text(file, f"{who}\n")
    try:
        yield shown
    finally:
        file.unlink(missing_ok=True)


def _read_progress(file: Path) -> str | None:
    """The first line of a progress file, or None."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[0][:300] if lines else None


def _digests(folder: Path) -> dict[str, str]:
    """File name -> sha256 of every file except the stamp."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "stamp.json")
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def _is_intact(folder: Path) -> bool:
    """True if the folder is complete and its files have the recorded digests."""
    try:
        expected, found = json.loads((folder / "stamp.json").read_text())["sha256"], _digests(folder)
        json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if "report.json" not in expected:  # a stamp of version 0.1
            del found["report.json"]
        return bool(expected == found)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _build_aside(folder: Path, settings: Settings, build: Builder, log: Log, what: str) -> None:
    """Build in a hidden folder, then rename it; needs the lock, so an existing hidden folder is a killed process's leftover."""
    aside = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(aside, ignore_errors=True)
    cpu_s, wall_s = time.process_time(), time.monotonic()
    report = build(aside, log)
    sha256 = _digests(aside)
    report["fingerprint"] = hashlib.sha256(json.dumps(sha256).encode()).hexdigest()
    report["versions"] = {name: importlib.metadata.version(name) for name in VERSIONS}
    report["cpu_s"], report["wall_s"] = time.process_time() - cpu_s, time.monotonic() - wall_s
    (aside / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sha256["report.json"] = sha256_of(aside / "report.json")
    (aside / "stamp.json").write_text(json.dumps({**settings, "sha256": sha256}, indent=1) + "\n")
    if folder.exists():
        log(f"{what}: {folder} is damaged and is replaced")
        shutil.rmtree(folder)
    aside.rename(folder)
