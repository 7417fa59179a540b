"""Compiled code of several processes at once: waiting, crashes, signals to the compiler, and real runs."""

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
from pathlib import Path

import pandas as pd
import pytest
from cli import TINY, rows, the_run
from code_cache import DELETED, flip, folder_of, needs_compiler, use
from code_cache import cache as cache

from rgpo.errors import ConfigError
from rgpo.learning.accel import compiler_cache

PROCESS = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from code_cache import *
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
