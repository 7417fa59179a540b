"""All disk operations of a run: atomic replacement of files and folders, deletion, and locks between processes.

A temporary file has a new random name and is created exclusively, never through a link. With fsync, a file's contents reach the
disk before its name does, and its name before the call returns, so it is then safe to delete the data that it replaces.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rgpo.errors import StorageError

TEMPORARY = re.compile(r"\..+\.writing")
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)  # unsupported by the file system, or the folder is not readable

LOCK_TRIES, LOCK_PAUSE_S = 20, 0.005


@contextmanager
def storing(run_dir: Path) -> Iterator[None]:
    """Turn an OSError into an error that names the run's folder and a remedy; wrap only reads and writes of our own files.

    Raises: StorageError if one of the run's files cannot be read or written.
    """
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        if not run_dir.is_dir():
            what = f"{run_dir} was deleted or moved while the run was using it; repeat the command to start it again."
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"{why}; free some space and repeat the command."
        else:
            path = error.filename2 or error.filename  # for a rename, the target rather than the temporary name
            name = Path(os.fsdecode(path)).name if path else "a file"
            what = f"cannot write {name} in {run_dir} ({why}); remove or repair what prevents it and repeat the command."
        raise StorageError(f"results_dir: {what}") from error


@contextmanager
def replacing(path: Path, *, fsync: bool = False, keep: Path | None = None) -> Iterator[Path]:
    """Yield a new empty hidden file beside ``path`` to write to; it replaces ``path``, or is deleted if an error is raised.

    fsync: write the contents to disk before the old file is replaced, so that one of the two survives even a power failure.
    keep: the path to which the old file is renamed, if it is a regular file.
    """
    aside = _hidden(path)
    os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    try:
        yield aside
        if fsync:
            _sync(aside, 0)
        if keep is not None and path.is_file() and not path.is_symlink():
            rename(path, keep)
        os.replace(aside, path)  # noqa: PTH105
    except BaseException:
        with suppress(OSError):  # a leftover partial file is harmless; do not mask the original error
            os.unlink(aside)  # noqa: PTH108
        raise
    if fsync:
        sync_folder(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty hidden folder beside ``path`` to fill; it replaces ``path``, or is deleted if an error is raised.

    All files are on disk before they get their final names; a process killed between the two renames leaves no ``path``.
    """
    aside, former = _hidden(path), _hidden(path)
    os.mkdir(aside)  # noqa: PTH102
    try:
        yield aside
        for found in sorted(aside.rglob("*")):
            _sync(found, os.O_DIRECTORY if found.is_dir() else 0)
        sync_folder(aside)
        if os.path.lexists(path):
            rename(path, former)
        rename(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(path.parent)
    remove_tree(former)


def fill(aside: Path, data: bytes | memoryview) -> None:
    """Write the contents of a file that ``replacing`` yielded."""
    descriptor = os.open(aside, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes | memoryview, *, fsync: bool = False, keep: Path | None = None) -> None:
    """Replace a file atomically; if ``path`` is a link or pipe, it is replaced itself."""
    with replacing(path, fsync=fsync, keep=keep) as aside:
        fill(aside, data)


def write_text(path: Path, text: str, *, fsync: bool = False) -> None:
    """Replace a text file (UTF-8) atomically."""
    write_bytes(path, text.encode(), fsync=fsync)


def rename(path: Path, target: Path) -> None:
    """Rename a file, replacing the target; the change is durable only after the folder is synced."""
    os.replace(path, target)  # noqa: PTH105


def set_aside(path: Path, folder: Path, suffix: str) -> Path:
    """Move a file to folder/name.suffix on the same disk, adding a number if that name is taken; returns the new path."""
    target, number = folder / f"{path.name}.{suffix}", 1
    while os.path.lexists(target):
        number += 1
        target = folder / f"{path.name}.{suffix}{number}"
    rename(path, target)
    sync_folder(folder)  # first, so that a power failure in between cannot lose both names
    sync_folder(path.parent)
    return target


def remove(paths: Iterable[Path]) -> None:
    """Delete files or links; missing files and folders are ignored."""
    for path in paths:
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(path)  # noqa: PTH108


def remove_tree(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        remove([path])


def remove_temporary(folder: Path) -> None:
    """Delete partially written files and folders that a killed process left behind."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]:
            remove_tree(path)


def _hidden(path: Path) -> Path:
    """A new hidden path in the same folder, with a name that ``remove_temporary`` recognizes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.writing")


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, durably: they are on disk when the call returns.

    Raises: OSError if one of them is a file or cannot be created.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):  # created by another process
        os.mkdir(folder)  # noqa: PTH102
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder if it is empty.

    Raises: OSError if it is empty but cannot be deleted.
    """
    try:
        os.rmdir(folder)  # noqa: PTH106
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def sync_folder(folder: Path) -> None:
    """Write a folder's list of file names to disk."""
    try:
        _sync(folder, os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on a file, created if needed; the kernel releases it however the process ends.

    Yields False if another process holds the lock and ``wait`` is false.

    Raises: OSError if the file cannot be opened for writing, or is a link, pipe or folder.
    """
    while True:
        descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            if not _acquired(descriptor, wait):
                yield False
                return
            if not _is_at(descriptor, path):  # the file was deleted or replaced in between
                continue
            yield True
            return
        finally:
            os.close(descriptor)


def _acquired(descriptor: int, wait: bool) -> bool:
    """True once the file is locked; without wait it still retries briefly, since `is_locked` elsewhere holds it for a moment."""
    if wait:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
    return False


def is_locked(path: Path) -> bool:
    """True if a live process holds the lock on a file."""
    try:
        descriptor = open_regular(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file and return its descriptor, without blocking on a pipe or following a link.

    Raises: OSError if the file cannot be opened, or is a link, pipe or folder.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return descriptor


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
