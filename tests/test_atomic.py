"""Files replaced whole or not at all, and locks that the kernel releases."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rgpo import atomic


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    atomic.write_text(path, "old")
    for error in (OSError, KeyboardInterrupt):
        with pytest.raises(error), atomic.replacing(path) as aside:
            aside.write_text("half of the n")
            assert path.read_text() == "old"
            raise error
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_text_is_utf_8_and_bytes_are_kept(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a", "π_old\r\n", fsync=True)
    assert (tmp_path / "a").read_bytes() == "π_old\r\n".encode()
    atomic.write_bytes(tmp_path / "a", memoryview(b"\x00\xff"))
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"


def test_a_lock_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not atomic.is_locked(path)
    with atomic.locked(path, wait=False) as first, atomic.locked(path, wait=False) as second:
        assert first and not second and atomic.is_locked(path)
    assert not atomic.is_locked(path)
    with atomic.locked(path, wait=True) as mine:
        assert mine


HOLD = "import sys, time; from pathlib import Path; from rgpo import atomic\n"
HOLD += "with atomic.locked(Path(sys.argv[1]), wait=True): print('held', flush=True); time.sleep(60)"


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with atomic.locked(path, wait=False) as mine:
        assert not mine
    os.kill(process.pid, signal.SIGKILL)
    with atomic.locked(path, wait=True) as mine:  # waits until the kernel has released it
        assert mine
    process.wait()


PROBE = "import sys; from pathlib import Path; from rgpo import atomic\nprint('probing', flush=True)\n"
PROBE += "while True: atomic.is_locked(Path(sys.argv[1]))"


def test_asking_for_a_lock_never_keeps_another_process_from_taking_it(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    process = subprocess.Popen([sys.executable, "-c", PROBE, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "probing\n"
        taken = []
        for _ in range(5000):
            with atomic.locked(path, wait=False) as mine:
                taken.append(mine)
        assert all(taken)
    finally:
        process.kill()
        process.wait()


def test_a_folder_that_cannot_be_deleted_is_an_error_unless_it_has_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    atomic.remove_folder(tmp_path)
    assert tmp_path.is_dir()

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))

    monkeypatch.setattr(os, "rmdir", fail)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.remove_folder(tmp_path)
