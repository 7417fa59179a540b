"""Compiled code of a test's own: its folder, and a graph that takes no compiler."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from rgpo.learning.accel.compiler_cache import verified

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
DELETED = "deleted and compiled anew"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


def use(graph: str = "a graph") -> list[str]:
    """Compile or load a graph as torch would: its files are written if they are missing. Returns the names of those written."""
    written = []
    with verified(graph):
        code = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        for name in ("ab/kernel.so", "ab/kernel.cpp", "fxgraph/entry"):
            path = code / name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(name.encode() * 100)
                written.append(name)
    return written


def folder_of(cache: Path) -> Path:
    """The folder of the only graph; rollouts in C have one of their own."""
    (folder,) = (path for path in cache.iterdir() if path.is_dir() and not list(path.rglob("collect.so")))
    return folder


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)
