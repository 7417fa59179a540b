"""Compiled code on disk: digests, other users, and what is no regular file."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from code_cache import DELETED, flip, folder_of, needs_compiler, use
from code_cache import cache as cache

from rgpo.errors import ConfigError
from rgpo.learning.accel import compiler_cache
from rgpo.learning.accel.compiled_adam import resolve
from rgpo.learning.accel.compiler_cache import verified


def kernel(cache: Path) -> Path:
    (path,) = cache.rglob("kernel.so")
    return path


def test_code_is_loaded_again_and_each_graph_has_a_folder(cache: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(use()) == 3
        assert use() == []
        assert len(use("another graph")) == 3
    assert len(list(cache.iterdir())) == 2
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache)


def plant(path: Path) -> None:
    path.with_name("planted.so").write_bytes(b"code")


def link(path: Path) -> None:
    other = path.parents[4] / "kernel.so"
    path.rename(other)
    path.symlink_to(other)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda path: flip(path, random.Random(0)), "kernel.so is damaged"),
    "a file cut short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "kernel.so is damaged"),
    "a link to a file": (link, "kernel.so is damaged"),
    "a missing file": (lambda path: path.unlink(), "kernel.so is missing"),
    "a file that no compilation left": (plant, "planted.so was not recorded"),
    "no digests": (lambda path: (path.parents[2] / "digests.json").unlink(), "its compilation was not finished"),
    "digests that are not JSON": (lambda path: (path.parents[2] / "digests.json").write_text("{"), "was not finished"),
    "digests of another type": (lambda path: (path.parents[2] / "digests.json").write_text("[1]"), "was not finished"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_code_that_differs_from_its_digests_is_compiled_anew(cache: Path, kind: str) -> None:
    damage, sentence = DAMAGE[kind]
    use()
    before = kernel(cache).read_bytes()
    damage(kernel(cache))
    with pytest.warns(UserWarning, match=rf"{folder_of(cache)}: .*{sentence}; the code is {DELETED}\.") as caught:
        assert len(use()) == 3
    assert len(caught) == 1
    assert kernel(cache).read_bytes() == before
    assert not list(cache.rglob("planted.so"))
    assert use() == []


def test_code_of_a_call_that_failed_is_compiled_anew(cache: Path) -> None:
    use()
    with pytest.raises(OSError, match="kernel"), verified("a graph"):
        raise OSError("kernel.so: undefined symbol")
    with pytest.warns(UserWarning, match=DELETED):
        assert len(use()) == 3


def test_a_failed_compilation_leaves_nothing(cache: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(RuntimeError, match="compiler"), verified("a graph"):
                Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "half.so").touch()
                raise RuntimeError("compiler")
    assert not list(cache.rglob("half.so"))


def test_files_that_a_loading_process_added_are_recorded(cache: Path) -> None:
    """Another graph of the same description, for example after an update of rgpo."""
    use()
    kernel(cache).with_name("other.so").touch()
    (folder_of(cache) / "digests.json").write_text(json.dumps(compiler_cache._digests(folder_of(cache))))
    with verified("a graph"):
        kernel(cache).with_name("new.so").write_bytes(b"new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use() == []
    assert len(list(cache.rglob("new.so"))) == 1


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_refused(cache: Path, mode: int) -> None:
    """The case that must fail, for the folder of all code, that of a graph, and a folder around them."""
    use()
    for folder in (cache, folder_of(cache), cache.parent):
        before = folder.stat().st_mode
        folder.chmod(mode)
        with pytest.raises(ConfigError, match=rf"{folder}: can be written by other users.*chmod go-w {folder}"):
            use()
        folder.chmod(before)
    cache.parent.chmod(mode | 0o1000)  # as /tmp: entries belong to their owners
    assert use() == []
    assert not folder_of(cache).stat().st_mode & 0o077


def test_a_folder_of_another_user_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use()
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    if cache.stat().st_uid:  # root may replace any file anyway
        with pytest.raises(ConfigError, match="belongs to another user"):
            use()
    else:
        os.chown(cache, 12345, -1)
        with pytest.raises(ConfigError, match="belongs to another user"):
            use()


@needs_compiler
def test_others_folders_leave_auto_uncompiled(cache: Path) -> None:
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    compiled, note = resolve("auto", 10**9)
    assert not compiled and note.startswith(f"not compiled: {cache}: can be written by other users")
    with pytest.raises(ConfigError, match="can be written by other users"):
        resolve(True, 10)


ODD = {
    "fifo crash-1-x": lambda folder: os.mkfifo(folder / "crash-1-x"),
    "folder crash-1-x": lambda folder: (folder / "crash-1-x").mkdir(),
    "empty crash-abc": lambda folder: (folder / "crash-abc").touch(),
    "huge process number": lambda folder: (folder / f"crash-{10**30}-x").touch(),
    "link crash-1-x": lambda folder: (folder / "crash-1-x").symlink_to("nowhere"),
    "fifo digests.json": lambda folder: os.mkfifo(emptied(folder / "digests.json")),
    "folder digests.json": lambda folder: emptied(folder / "digests.json").mkdir(),
    "link digests.json": lambda folder: emptied(folder / "digests.json").symlink_to("nowhere"),
    "nested digests.json": lambda folder: (folder / "digests.json").write_text("[" * 100_000),
    "fifo in the code": lambda folder: os.mkfifo(next(folder.glob("code-*")) / "pipe"),
    "fifo code-x": lambda folder: os.mkfifo(folder / "code-x"),
    "linked folder": lambda folder: (next(folder.glob("code-*")) / "ab" / "more").symlink_to(folder),
    "huge file": lambda folder: os.truncate(next(folder.rglob("kernel.so")), 2**40),
}
LOCKS = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "dangling link": lambda path: path.symlink_to("target"),
}


def emptied(path: Path) -> Path:
    path.unlink()
    return path


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_regular_file_is_deleted_with_the_code(cache: Path, odd: str) -> None:
    use()
    ODD[odd](folder_of(cache))
    with pytest.warns(UserWarning, match=DELETED):
        assert len(use()) == 3
    assert use() == []


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_that_is_no_regular_file_is_refused(cache: Path, kind: str) -> None:
    use()
    folder = folder_of(cache)
    LOCKS[kind](emptied(folder / "lock"))
    with pytest.raises(ConfigError, match=r"lock cannot be used \(.+\); delete it to compile anew\.$"):
        use()
    assert not (folder / "target").exists()
