"""Folders of compiled code, one per graph: torch loads a file only after its digest has been checked against the recorded one.

FOLDER/code-*        torch's cache: the files written by one compilation
FOLDER/digests.json  sha256 of each of its files, written when the first call of the compiled code has returned
FOLDER/lock          shared while code is verified and loaded, exclusive while it is compiled or deleted
FOLDER/crash-PID-*   the stack of a process that crashed in a compiled call; empty while the process is alive
"""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rgpo import atomic
from rgpo.errors import ConfigError, printable
from rgpo.paths import compiler_cache_dir

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
DIGESTS = "digests.json"
PATIENCE_S = 300.0  # a compilation takes about half a minute on an idle machine
LARGEST = 2**30  # bytes of a file that is read
CRASH_NAME = re.compile(r"crash-[1-9]\d{0,8}-.*", re.DOTALL)
UNMAPPED = 65534  # owner of files from outside a container

Digests = dict[str, str]  # path in the folder -> sha256


class CrashRecord:
    """Context in which a crash of this process, such as a segmentation fault, writes its stack to a file in the folder."""

    def __init__(self, folder: Path, code: Path) -> None:
        self.code = code  # the folder of what was compiled
        descriptor, name = tempfile.mkstemp(prefix=f"crash-{os.getpid()}-", dir=folder)
        self._file = os.fdopen(descriptor, "w")
        weakref.finalize(self, _remove, self._file, Path(name), os.getpid())

    def __enter__(self) -> None:
        self._elsewhere = faulthandler.is_enabled()
        faulthandler.enable(self._file)

    def __exit__(self, *_: object) -> None:
        faulthandler.disable()
        if self._elsewhere and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)


def _remove(file: IO[str], path: Path, pid: int) -> None:
    """Remove the empty record when its process exits normally; forked children leave it alone."""
    file.close()
    if os.getpid() == pid:
        path.unlink(missing_ok=True)


@contextmanager
def verified(graph: str) -> Iterator[CrashRecord]:
    """Context in which to compile the graph of that description or load its code; yields the crash record for its calls.

    Code that does not match its digests, or that has none, is deleted with a warning and recompiled. One process compiles at a
    time; others wait for its code.

    Raises: ConfigError if others can write to the folder, code from it crashed, or another process compiles for too long.
    """
    folder = private_dir() / f"rgpo-{hashlib.sha256(graph.encode()).hexdigest()[:16]}"
    with _refusing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    refuse_writable_by_others(folder)
    folder.chmod(0o700)  # then the modes of the files in it do not matter
    with _refusing(folder):
        descriptor = atomic.open_regular(folder / "lock", os.O_RDWR | os.O_CREAT)
    with os.fdopen(descriptor, "r+") as lock:
        loads = _lock(lock, folder)
        _refuse_crashed(folder)
        if not loads:
            _delete_code(folder)
        found = sorted(folder.glob("code-*"))
        code = found[0] if found else Path(tempfile.mkdtemp(prefix="code-", dir=folder))
        names = set(_files(folder))
        try:
            record = CrashRecord(folder, code)
            with _used_by_torch(code), record:
                yield record
        except BaseException:
            (folder / DIGESTS).unlink(missing_ok=True)
            if not loads:
                shutil.rmtree(code, ignore_errors=True)
            raise
        if set(_files(folder)) != names and _locked(lock, fcntl.LOCK_EX):  # of several that loaded, the last records new files
            atomic.write_text(folder / DIGESTS, json.dumps(_digests(folder), indent=1))


def private_dir() -> Path:
    """The folder of all compiled code, created if necessary.

    Raises: ConfigError if it cannot be written, or if others can write to it.
    """
    folder = compiler_cache_dir()
    refuse_writable_by_others(folder)
    return folder


def refuse_writable_by_others(folder: Path) -> None:
    """Raises: ConfigError if another user can replace files in a folder, and thereby the code that runs."""
    named, folder = folder.absolute(), folder.resolve()
    for path in dict.fromkeys((folder, *folder.parents, *named.parents)):
        found = path.stat()
        others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if path != folder and (found.st_mode & stat.S_ISVTX or _is_private_group(found)):
            others = 0  # entries of a sticky folder belong to their owners
        owners = {0, os.geteuid()} if path == folder else {0, os.geteuid(), UNMAPPED}
        if others or found.st_uid not in owners:
            why = "can be written by other users" if others else "belongs to another user"
            remedy = f"run `chmod go-w {path}` or set" if others else "set"
            raise ConfigError(f"{path}: {why}, who could replace compiled code; {remedy} RGPO_CACHE to a folder of your own.")


def _is_private_group(found: os.stat_result) -> bool:
    """True for a folder that only its owner and the owner's private group (the same id) can write, as with umask 002."""
    return not found.st_mode & stat.S_IWOTH and found.st_uid == found.st_gid == os.geteuid() != 0


def _lock(lock: IO[str], folder: Path) -> bool:
    """Take a shared lock and return True if there is code and it all matches its digests; else an exclusive lock, and False.

    Raises: ConfigError if another process keeps the lock for too long.
    """
    deadline, told = time.monotonic() + PATIENCE_S, False
    while time.monotonic() < deadline:
        if _locked(lock, fcntl.LOCK_SH) and _problem(folder) is None:
            return True
        if _locked(lock, fcntl.LOCK_EX):
            if _problem(folder) is not None:
                lock.seek(0)
                lock.truncate()
                lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n")
                lock.flush()
                return False
        else:
            if not told:
                who = printable(os.pread(lock.fileno(), 200, 0).decode(errors="replace").strip()) or "another process"
                print(f"  waiting, for at most {PATIENCE_S:.0f} s, for code that {who} compiles", file=sys.stderr)
            told = True
            time.sleep(0.1)
    raise ConfigError(f"{folder}: another process has been compiling for {PATIENCE_S:.0f} s; stop it or delete the folder.")


def _locked(lock: IO[str], kind: int) -> bool:
    """Try to take the lock; True if it is now held in this mode."""
    with suppress(BlockingIOError):
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        return True
    return False


def _problem(folder: Path) -> str | None:
    """A clause if some code does not match its digests; "" if there is no code, None if all is well."""
    try:
        recorded = json.loads(_read(folder / DIGESTS))
    except (OSError, ValueError, RecursionError):
        recorded = {}
    found = _digests(folder)
    odd = sorted(path.name for path in folder.glob("crash-*") if not _is_record(path))
    if odd:
        return f"{odd[0]} is not a record of a crash"
    if found and recorded == found:
        return None
    if not recorded or not isinstance(recorded, dict):
        return "its compilation was not finished" if found else ""
    name = min(name for name in {*recorded, *found} if recorded.get(name) != found.get(name))
    return f"{name} {'was not recorded' if name not in recorded else 'is damaged' if name in found else 'is missing'}"


def _digests(folder: Path) -> Digests:
    """The sha256 of every file of the code; for an unreadable one the error's text, which matches no digest."""
    found = {}
    for name in _files(folder):
        try:
            found[name] = hashlib.sha256(_read(folder / name)).hexdigest()
        except OSError as error:
            found[name] = str(error.strerror)
    return found


def _files(folder: Path) -> Iterator[str]:
    """All entries of the code except real folders and torch's lock files, which are empty."""
    for code in folder.glob("code-*"):
        if code.is_symlink() or not code.is_dir():
            yield code.name
            continue
        for parent, folders, files in os.walk(code):
            names = [*files, *(name for name in folders if Path(parent, name).is_symlink())]
            yield from (Path(parent, name).relative_to(folder).as_posix() for name in names if not name.endswith(".lock"))


def _read(path: Path) -> bytes:
    """Raises: OSError unless path is a readable regular file of at most LARGEST bytes."""
    with os.fdopen(atomic.open_regular(path, os.O_RDONLY), "rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return file.read()


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Raises: ConfigError if something in a graph's folder cannot be opened."""
    try:
        yield
    except OSError as error:
        name = Path(error.filename or folder).name
        raise ConfigError(f"{folder}: {name} cannot be used ({error.strerror}); delete it to compile anew.") from error


def _is_record(path: Path) -> bool:
    """True if the file is from a crashed or running process, or was removed in the meantime."""
    with suppress(FileNotFoundError):
        return stat.S_ISREG((found := path.lstat()).st_mode) and (found.st_size > 0 or bool(CRASH_NAME.fullmatch(path.name)))
    return True


def _refuse_crashed(folder: Path) -> None:
    """Raises: ConfigError if a process crashed in code from the folder."""
    for path in filter(_is_record, folder.glob("crash-*")):
        with _refusing(folder):
            try:
                lines = _read(path).decode(errors="replace").splitlines()
            except FileNotFoundError:  # its process has exited normally
                continue
        if lines:
            raise ConfigError(f"{folder}: compiled code from it crashed ({lines[0][:80]}); delete the folder to compile anew.")
        with suppress(PermissionError):  # another user's process, still running
            try:
                os.kill(int(path.name.split("-")[1]), 0)
            except ProcessLookupError:  # it was killed
                path.unlink(missing_ok=True)


def _delete_code(folder: Path) -> None:
    """Delete all code and the leftovers of killed processes, under an exclusive lock; warns if there was code."""
    problem = _problem(folder)
    if problem:
        warnings.warn(f"{folder}: {problem}; the code is deleted and compiled anew.", stacklevel=2)
    for path in (*folder.glob(DIGESTS), *folder.glob("code-*"), *folder.glob("crash-*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _used_by_torch(code: Path) -> Iterator[None]:
    """Make inductor use a folder as its cache; it reads the environment variable at each use."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(code)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
