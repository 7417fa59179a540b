"""The disk operations of a process, counted, and what can happen at one of them: death, a signal, an error, a power cut."""

from __future__ import annotations

import builtins
import io
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink", "fsync", "ftruncate", "truncate")
REVERSIBLE = ("replace", "rename", "unlink", "remove", "rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operations:
    """Calls `at(k)` before the k-th operation that changes a file below a folder, and `after(k)` after it, from 1.

    Operations: the functions of os in CALLS, and opening a file for writing. What pyarrow writes is seen once it is renamed.
    """

    def __init__(self, folder: Path, at: Callable[[int], None], after: Callable[[int], None] = lambda k: None) -> None:
        self.folder, self.at, self.after = os.path.realpath(folder), at, after
        self.count = 0
        self._inside = False

    def install(self) -> None:
        """Replace the functions in this process, for as long as it lives."""
        for name in CALLS:
            setattr(os, name, self._counted(getattr(os, name), always=name in ("fsync", "ftruncate")))
        plain_open = io.open

        def opening(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            return (counted if set(mode) & set("wax+") else plain_open)(file, mode, *args, **more)

        counted = self._counted(plain_open)
        builtins.open = io.open = opening
        low_level = os.open
        counted_low = self._counted(low_level)

        def opening_low(path: Any, flags: int, *args: Any, **more: Any) -> int:
            return int((counted_low if flags & WRITING else low_level)(path, flags, *args, **more))

        os.open = opening_low

    def _counted(self, function: Callable[..., Any], always: bool = False) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            if self._inside or not (always or self._ours(args[0], more)):
                return function(*args, **more)
            self._inside = True
            try:
                self.count += 1
                self.at(self.count)
                returned = function(*args, **more)
                self.after(self.count)
                return returned
            finally:
                self._inside = False

        return called

    def _ours(self, path: Any, more: dict[str, Any]) -> bool:
        return not isinstance(path, int) and os.path.realpath(place(path, more)).startswith(self.folder)


def place(path: Any, more: dict[str, Any]) -> str:
    """The path that a function of os was given, relative to its dir_fd if it has one."""
    number = more.get("dir_fd")
    return str((Path.cwd() if number is None else Path(f"/proc/self/fd/{number}").readlink()) / os.fsdecode(path))


def counting(folder: Path, report: Path) -> Callable[[], None]:
    """A `first` for commands: write the number of operations so far to a file after each."""

    def install() -> None:
        file = os.open(report, os.O_CREAT | os.O_WRONLY)
        Operations(folder, lambda k: None, lambda k: void(os.pwrite(file, f"{k}".encode(), 0))).install()

    return install


def void(_: object) -> None:
    """Nothing."""


def dying(folder: Path, k: int) -> Callable[[], None]:
    """A `first` for commands: the process ends, as on SIGKILL, before its k-th operation."""
    return lambda: Operations(folder, lambda now: os._exit(9) if now == k else None).install()


def signaled(folder: Path, k: int, number: int, times: int) -> Callable[[], None]:
    """A `first` for commands: the process gets a signal at its k-th operation and the ones after it."""
    return lambda: Operations(folder, lambda now: signal.raise_signal(number) if k <= now < k + times else None).install()


def failing(folder: Path, k: int, number: int, times: int) -> Callable[[], None]:
    """A `first` for commands: `times` operations from the k-th on raise an OSError with this errno."""

    def fail(now: int) -> None:
        if k <= now < k + times:
            raise OSError(number, os.strerror(number), "")

    return lambda: Operations(folder, fail).install()


def losing_power(folder: Path, graveyard: Path, k: int, rng: random.Random) -> Callable[[], None]:
    """A `first` for commands: the power is cut before the k-th operation (PowerCut)."""
    return lambda: PowerCut(folder, graveyard, k, rng).install()


class Step(NamedTuple):
    """A function that undoes an operation, and the folders that were not synced since it happened."""

    undo: Callable[[], None]
    unsynced: set[str]


class PowerCut(Operations):
    """Before the k-th operation, drop what was not synced and end.

    A file that changed after its last fsync keeps a random prefix. Of the renames and deletions in folders that were not synced
    since, a random number of the last ones is undone.
    """

    def __init__(self, folder: Path, graveyard: Path, k: int, rng: random.Random) -> None:
        super().__init__(folder, self._cut)
        self.k, self.rng, self.graveyard = k, rng, graveyard
        graveyard.mkdir(exist_ok=True)
        self._synced = {self._version(path) for path in Path(self.folder).rglob("*")}
        self._undo: list[Step] = []

    @staticmethod
    def _version(path: Path | int) -> tuple[int, int, int]:
        found = os.stat(path)  # noqa: PTH116  # or a descriptor
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _counted(self, function: Callable[..., Any], always: bool = False) -> Callable[..., Any]:
        name = function.__name__

        def noted(*args: Any, **more: Any) -> Any:
            if name == "fsync":
                function(*args, **more)
                self._note_sync(args[0])
                return None
            undo = self._undoing(name, args, more) if name in REVERSIBLE else None
            returned = function(*args, **more)
            self._undo += [undo] if undo else []
            return returned

        noted.__name__ = name
        return super()._counted(noted, always)

    def _note_sync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        self._synced.add(self._version(number))
        folder = os.path.realpath(f"/proc/self/fd/{number}")
        for step in self._undo:
            step.unsynced.discard(folder)
        self._undo = [step for step in self._undo if step.unsynced]

    def _undoing(self, name: str, args: tuple[Any, ...], more: dict[str, Any]) -> Step | None:
        """A step that undoes an operation that is about to happen."""
        source, target = Path(place(args[0], more)), Path(place(args[-1], more))
        if name == "rmdir":
            return Step(lambda: target.mkdir(exist_ok=True), {os.path.realpath(target.parent)})
        if target.is_dir() or source.is_dir() or not source.exists():
            return None
        grave = self.graveyard / f"{self.count}"
        if target.exists():
            os.link(target, grave, follow_symlinks=False)
        moved = name in ("replace", "rename")

        def undo() -> None:
            if moved and target.exists():
                target.replace(source)
            if grave.exists() and target.parent.is_dir():
                grave.replace(target)

        return Step(undo, {os.path.realpath(source.parent), os.path.realpath(target.parent)})

    def _cut(self, now: int) -> None:
        if now != self.k:
            return
        for step in reversed(self._undo[self.rng.randint(0, len(self._undo)) :]):
            step.undo()
        for path in sorted(Path(self.folder).rglob("*")):
            if path.is_file() and self._version(path) not in self._synced:
                os.truncate(path, self.rng.choice((0, self.rng.randint(0, path.stat().st_size), path.stat().st_size)))
        os._exit(9)
