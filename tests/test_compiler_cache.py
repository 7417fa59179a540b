"""Compiled code on disk: digests, other users, several processes at once, crashes, and signals to the compiler."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli import TINY, rows, the_run

from rgpo.errors import ConfigError
from rgpo.learning.accel import compiler_cache
from rgpo.learning.accel.compiled_adam import resolve
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


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


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


PROCESS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from test_compiler_cache import *
with verified("a graph") as record:
    code = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "kernel.so"
    if not code.exists():
        print("compiles", flush=True)
        time.sleep(float(sys.argv[2]))
        code.write_bytes(b"code")
    if sys.argv[3:4] == ["first"]:
        os.kill(os.getpid(), int(sys.argv[4]))
if sys.argv[3:4] == ["later"]:
    with record:
        os.kill(os.getpid(), int(sys.argv[4]))
if sys.argv[3:4] == ["elsewhere"]:
    os.kill(os.getpid(), int(sys.argv[4]))
"""


def process(*words: object) -> subprocess.Popen[str]:
    """A process that uses a graph: the seconds that compiling takes, and in which call of the code it sends itself a signal."""
    command = [sys.executable, "-c", PROCESS, str(Path(__file__).parent), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_processes_one_compiles(cache: Path) -> None:
    started = [process(1.0) for _ in range(4)]
    ends = [one.communicate(timeout=120) for one in started]
    assert [one.returncode for one in started] == [0] * 4, ends
    assert "".join(out for out, _ in ends) == "compiles\n"
    assert not any(DELETED in err for _, err in ends)


def test_a_process_names_the_one_it_waits_for_and_does_not_wait_for_ever(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    use()
    monkeypatch.setattr(compiler_cache, "PATIENCE_S", 0.3)
    with (folder_of(cache) / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=rf"{folder_of(cache)}: another process has been compiling"):
            use()
    who = rf"process {os.getpid()} on \S+ since \d\d:\d\d:\d\d"
    assert re.search(rf"^  waiting, for at most 0 s, for code that {who} compiles\n$", capfd.readouterr().err)


@pytest.mark.parametrize("call", ["first", "later"])
def test_a_crash_names_the_folder_to_delete(cache: Path, call: str) -> None:
    crashed = process(0, call, int(signal.SIGSEGV))
    crashed.communicate(timeout=120)
    assert crashed.returncode == -signal.SIGSEGV
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"{folder_of(cache)}: .*Segmentation fault.*; delete the folder to compile anew"):
            use()
    shutil.rmtree(folder_of(cache))
    assert len(use()) == 3


def test_a_killed_process_is_no_crash(cache: Path) -> None:
    """Neither while it compiles or loads code nor later; and a crash elsewhere is none of the code's."""
    process(0, "first", int(signal.SIGKILL)).communicate(timeout=120)
    with pytest.warns(UserWarning, match=f"not finished; the code is {DELETED}"):
        use()
    process(0, "first", int(signal.SIGKILL)).communicate(timeout=120)
    with pytest.warns(UserWarning, match=DELETED):  # it added a kernel that it did not record
        use()
    process(0).communicate(timeout=120)
    for end in (signal.SIGKILL, signal.SIGSEGV):
        process(0, "elsewhere" if end == signal.SIGSEGV else "later", int(end)).communicate(timeout=120)
        assert use() == []
    gc.collect()
    assert not list(folder_of(cache).glob("crash-*"))


RUN = [sys.executable, "-m", "rgpo.cli.run", *TINY, "algo=ppo", "num_iterations=2", "update.compile=true"]


def measured(folder: Path) -> tuple[pd.DataFrame, str]:
    """The metrics of a compiled run, and what it printed to stderr."""
    done = subprocess.run([*RUN, "force=true"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return rows(the_run(folder / "results")), done.stderr


@needs_compiler
def test_no_flipped_bit_of_real_code_is_loaded(cache: Path, tmp_path: Path) -> None:
    """Each of a hundred flips is found; a run after one of them compiles anew and computes the same numbers."""
    expected, _ = measured(tmp_path)
    folder, rng = folder_of(cache), random.Random(0)
    files = sorted(path for path in folder.rglob("code-*/**/*") if path.is_file() and path.suffix != ".lock")
    assert {".so", ".cpp", ".json"} <= {path.suffix for path in files}
    assert compiler_cache._problem(folder) is None
    for path in rng.choices([*files, folder / "digests.json"], k=100):
        whole = path.read_bytes()
        flip(path, rng)
        assert compiler_cache._problem(folder)
        path.write_bytes(whole)
    for path in files:
        if path.suffix == ".so":
            flip(path, rng)
    for warned in (1, 0):
        found, said = measured(tmp_path)
        assert said.count(DELETED) == warned
        pd.testing.assert_frame_equal(found, expected, check_exact=True)


SLOW_COMPILER = """#!/bin/sh
case "$*" in *--version*) exec {real} "$@";; esac
[ -e {begun} ] && exec {real} "$@"
touch {begun}
sleep 60
"""


@needs_compiler
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_compiler_runs_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """A terminal and a scheduler send it to the compiler, too; the stopped run continues as if it had not been stopped."""
    begun, slow = tmp_path / "begun", tmp_path / "g++"
    slow.write_text(SLOW_COMPILER.format(real=shutil.which("g++"), begun=begun))
    slow.chmod(0o755)
    env = os.environ | {"CXX": str(slow)}
    run = subprocess.Popen(
        RUN, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not begun.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    time.sleep(0.2)
    os.killpg(run.pid, number)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 128 + number, out + err
    assert "stopped; the same command resumes the run" in out and "compiler" not in err
    (state,) = tmp_path.glob("results/*/*/state.json")
    assert json.loads(state.read_bytes())["status"] == "interrupted"
    done = subprocess.run(RUN, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "resumes after iteration 1 of 2" in done.stdout and "not bit for bit" not in done.stdout


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
