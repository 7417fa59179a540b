"""A command's process ends without Python's teardown, and nothing else of its end is missing."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

BUFFERED = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


def end(code: str, cwd: Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    program = f"from rgpo.leaving import run_program\ndef main():\n{code}\nrun_program(main)"
    return subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, timeout=60, **kwargs)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("return 0", 0),
        ("return None", 0),
        ("return 2", 2),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit(130)", 130),
        ("import sys; sys.exit('a sentence')", 1),
        ("raise KeyError('x')", 1),
    ],
)
def test_exit_codes_are_kept(how: str, expected: int, tmp_path: Path) -> None:
    done = end(f"  {how}", tmp_path)
    assert done.returncode == expected
    assert ("a sentence" in done.stderr) == ("sentence" in how) and ("KeyError: 'x'" in done.stderr) == ("KeyError" in how)


def test_the_work_of_pythons_end_is_done_without_freeing_memory(tmp_path: Path) -> None:
    done = end(
        """
  import atexit, ctypes, gzip, sys, threading, time
  from concurrent.futures import ThreadPoolExecutor
  class Kept:
      def __del__(self):
          print("freed")
  global kept, text, packed, pool
  kept = Kept()
  text = open("text", "w"); text.write("written")
  packed = gzip.open("packed", "wt"); packed.write("packed")
  pool = ThreadPoolExecutor(1); pool.submit(lambda: (time.sleep(0.2), print("pool")))
  threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
  atexit.register(print, "atexit")
  ctypes.CDLL(None).puts(b"of C")
  sys.stdout.write("no newline")
  return 3""",
        tmp_path,
    )
    assert done.returncode == 3 and done.stderr == ""
    assert all(text in done.stdout for text in ("pool", "thread", "atexit", "of C", "no newline")) and "freed" not in done.stdout
    assert done.stdout.index("thread") < done.stdout.index("atexit")
    assert (tmp_path / "text").read_text() == "written" and gzip.decompress((tmp_path / "packed").read_bytes()) == b"packed"


def test_a_profiler_gets_the_usual_end(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("from rgpo.leaving import run_program\nrun_program(lambda: 0)")
    done = subprocess.run([sys.executable, "-m", "cProfile", "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert "function calls" in done.stdout


def test_a_stdout_that_cannot_be_flushed_has_pythons_exit_code(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        program = "import sys\nfrom rgpo.leaving import run_program\nrun_program(lambda: sys.stdout.write('x') and 0)"
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert done.returncode == 120 and "No space left" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_a_file_that_cannot_be_written_at_the_end_is_reported(tmp_path: Path) -> None:
    """As Python does it: the exit code stays, and stderr has the error."""
    done = end('  global full\n  full = open("/dev/full", "w"); full.write("lost")\n  return 0', tmp_path)
    assert done.returncode == 0 and "Exception ignored in" in done.stderr and "No space left" in done.stderr, done


def test_a_thread_that_does_not_end_is_named_and_left(tmp_path: Path) -> None:
    code = """
import threading, time, rgpo.leaving as leaving
leaving.PATIENCE_S = 0.2
def main():
    threading.Thread(target=time.sleep, args=(60,), name="of an environment").start()
    print("done")
    return 4
leaving.run_program(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 4 and done.stdout == "done\n"
    assert done.stderr == "left without threads that do not end: of an environment; make them daemons, or end them in close()\n"
