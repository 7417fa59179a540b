"""Extraction of committed folders from a repository without running any program that the repository configures."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rgpo.errors import MAX_LINE
from rgpo.runtime.provenance import NO_HOOKS, git_environment

MAX_COMMITTED = 1 << 30  # bytes in the extracted files
_FILE = re.compile(rb"100(?:644|755) blob ([0-9a-f]+)\t([^\0]+)\0")  # excludes links and submodules


def extract(above: Path, name: str, folders: Sequence[str], target: Path) -> None:
    """Write the folders inside `above`, as of the commit called `name`, to the target.

    Raises: OSError or ValueError, with the reason, if there is no such commit or it contains none of the folders.
    """
    commit = _git(above, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
    found = _FILE.findall(_git(above, "ls-tree", "-r", "-z", commit, "--", *folders))
    if not found:
        raise OSError(f"it has no {' or '.join(folders)}")
    contents = _git(above, "cat-file", "--batch", given=b"".join(digest + b"\n" for digest, _ in found))
    _write(target, [os.fsdecode(path) for _, path in found], contents)


def _git(folder: Path, *words: str, given: bytes = b"") -> bytes:
    """Run git in a folder and return its output; only for commands that run no program configured by the repository.

    Arguments are our own or commit hashes, and paths are not patterns.

    Raises: OSError, with the reason, if git fails or its output is larger than MAX_COMMITTED.
    """
    command = ["git", *NO_HOOKS, "--no-replace-objects", "--literal-pathspecs", "-C", str(folder), *words]
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=git_environment()) as process:  # noqa: S603  # no shell; see above
            output = process.stdout.read(MAX_COMMITTED + 1) if process.stdout else b""
            if len(output) > MAX_COMMITTED:
                process.kill()
                raise OSError(f"it has more than {MAX_COMMITTED} bytes")
        stderr.seek(0)
        if process.returncode:
            why = stderr.read(MAX_LINE).decode(errors="replace").strip().splitlines()
            raise OSError(why[0] if why else "no such commit")
    return output


def _write(folder: Path, paths: Sequence[str], contents: bytes) -> None:
    """Write files to a folder from the output of git cat-file: a line that ends in the size, the contents, a newline.

    Raises: OSError or ValueError if a path leads outside the folder or something is missing.
    """
    start = 0
    for path in paths:
        if path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
            raise ValueError("it has a path that leads elsewhere")
        end = contents.index(b"\n", start)
        _, kind, size = contents[start:end].split(b" ")
        if kind != b"blob":
            raise ValueError("it has a file that is none")
        start = end + 1 + int(size) + 1
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(contents[end + 1 : start - 1])
