"""Disks that are full, read-only or broken, too few open files, a stdout that breaks, and a results folder that vanishes."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import operations, store
from .commands import Ended, fault, refused, rgpo_report, rgpo_run
from .compare import equal, iterations
from .kills import control, repeated
from .outcomes import HELD_WELL, REFUSED, WRONG, Case, Kind, Result

CLONE_NEWNS = 0x00020000
ERRORS = (errno.ENOSPC, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)


def afterwards(case: Case, config: str, cwd: Path, ended: Ended) -> Result:
    """A failed command gives one sentence; it keeps the rows, and the same command completes the run later."""
    if problem := fault(ended):
        return problem
    if ended.code == 0:
        return equal(cwd / "results", store.whole(case.shared, config).results)
    sentence = refused(ended)
    if sentence.outcome != REFUSED:
        return sentence
    before = iterations(cwd / "results")
    result = repeated(case, config, cwd)
    if lost := before - iterations(cwd / "results"):
        return Result(WRONG, f"rows lost: {sorted(lost)}")
    return sentence if result == HELD_WELL else result._replace(detail=f"after {sentence.detail!r}: {result.detail}")


def failing_operation(case: Case) -> Result:
    """One disk operation fails, or a few, or all from one on."""
    config, cwd = control(case), case.folder / "here"
    cwd.mkdir()
    k = 1 + case.rng.randrange(store.whole(case.shared, config).operations)
    first = operations.failing(cwd / "results", k, case.rng.choice(ERRORS), case.rng.choice((1, 1, 3, 10**6)))
    return afterwards(case, config, cwd, rgpo_run(store.words(case.shared, config), cwd, first=first))


def limited(kind: int, low: int, high: int, case: Case) -> Result:
    """A limit of the process on the size of files or on the number of open ones."""
    config, cwd = control(case), case.folder / "here"
    cwd.mkdir()
    limit = case.rng.randint(low, high)
    first = partial(resource.setrlimit, kind, (limit, limit))
    result = afterwards(case, config, cwd, rgpo_run(store.words(case.shared, config), cwd, first=first))
    return result._replace(detail=f"limit {limit:,}: {result.detail}")


def mounted(case: Case, options: str) -> bool:
    """Mount a tmpfs as results/ in a namespace of this worker's own; False without the rights to do so."""
    results = case.folder / "here" / "results"
    results.mkdir(parents=True)
    libc = ctypes.CDLL(None)
    if libc.unshare(CLONE_NEWNS) or subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode:
        return False
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", results], capture_output=True).returncode == 0


def remount(case: Case, options: str) -> None:
    """Change the options of the mounted tmpfs."""
    subprocess.run(["mount", "-o", f"remount,{options}", case.folder / "here" / "results"], capture_output=True, check=True)


def full_disk(case: Case) -> Result:
    """A tmpfs of a few kilobytes, later enlarged."""
    config, size = control(case), case.rng.randint(4, 120)
    if not mounted(case, f"size={size}k,nr_inodes={case.rng.choice((12, 25, 10_000))}"):
        return limited(resource.RLIMIT_FSIZE, 0, 40_000, case)
    cwd = case.folder / "here"
    try:
        words = store.words(case.shared, config)

        def enlarge() -> None:
            remount(case, "size=100m,nr_inodes=10000")

        return after_repair(case, config, cwd, rgpo_run(words, cwd), enlarge)
    finally:
        subprocess.run(["umount", "-l", cwd / "results"], capture_output=True, check=False)


def read_only(case: Case) -> Result:
    """A tmpfs that is read-only from the start, or from some moment on, and later writable."""
    config = control(case)
    seconds = store.whole(case.shared, config).seconds
    if not mounted(case, "size=100m"):
        return failing_operation(case)
    cwd, moment = case.folder / "here", case.rng.choice((0.0, case.rng.uniform(0, seconds)))

    def protect(pid: int) -> None:
        for _ in range(50):
            time.sleep(moment or 0.02)
            options = ["mount", "-o", "remount,ro", cwd / "results"]
            if subprocess.run(options, capture_output=True, check=False).returncode == 0:  # busy while a file is open for writing
                return

    try:
        if not moment:
            remount(case, "ro")
        ended = rgpo_run(store.words(case.shared, config), cwd, meanwhile=protect if moment else None)
        return after_repair(case, config, cwd, ended, partial(remount, case, "rw"))
    finally:
        subprocess.run(["umount", "-l", cwd / "results"], capture_output=True, check=False)


def after_repair(case: Case, config: str, cwd: Path, ended: Ended, repair: Callable[[], None]) -> Result:
    """`afterwards`, with the disk repaired before the command is repeated."""
    if problem := fault(ended):
        return problem
    repair()
    return afterwards(case, config, cwd, ended)


def broken_stdout(case: Case) -> Result:
    """Stdout is full, closed, or a pipe that nobody reads, from the start or after some bytes."""
    config, cwd = control(case), case.folder / "here"
    cwd.mkdir()
    number = case.rng.choice((1, 1, 2))
    how = case.rng.choice(("full", "closed", "pipe"))

    def first() -> None:
        if how == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif how == "closed":
            os.close(number)
        else:
            reading, writing = os.pipe()
            os.dup2(writing, number)
            os.close(reading)

    ended = rgpo_run(store.words(case.shared, config), cwd, first=first)
    if ended.code in (1, 2, -13, 120, 141) and "Traceback" not in ended.text:  # the sentence may be what cannot be printed
        return repeated(case, config, cwd)
    return fault(ended) or equal(cwd / "results", store.whole(case.shared, config).results)


def vanishing(case: Case) -> Result:
    """The results folder, or the run's folder, is deleted or renamed during the run."""
    config, cwd = control(case), case.folder / "here"
    cwd.mkdir()
    moment = case.rng.uniform(0, 1) * store.whole(case.shared, config).seconds
    deleted = case.rng.random() < 0.5

    def vanish(pid: int) -> None:
        time.sleep(moment)
        for folder in [*(cwd / "results").glob("*/*"), cwd / "results"][:: case.rng.choice((1, -1))][:1]:
            if folder.exists() and deleted:
                subprocess.run(["rm", "-rf", folder], check=False)
            elif folder.exists():
                folder.rename(case.folder / "renamed")

    ended = rgpo_run(store.words(case.shared, config), cwd, meanwhile=vanish)
    if problem := fault(ended):
        return problem
    if ended.code in (1, 2) and (sentence := refused(ended)).outcome != REFUSED:
        return sentence
    if ended.code == 0 and (problem := equal(cwd / "results", store.whole(case.shared, config).results)) == HELD_WELL:
        return HELD_WELL
    return repeated(case, config, cwd)


def report_on_failing_disk(case: Case) -> Result:
    """A disk operation of the report fails: one sentence, and the page is either complete or absent."""
    cwd = case.folder / "here"
    shutil.copytree(store.whole(case.shared, "ppo").results, cwd / "results")
    first = operations.failing(cwd, case.rng.randint(1, 12), case.rng.choice(ERRORS), case.rng.choice((1, 10**6)))
    ended = rgpo_report((), cwd, first=first)
    if problem := fault(ended):
        return problem
    page = cwd / "report" / "index.html"
    if page.exists() and "</html>" not in page.read_text():
        return Result(WRONG, f"half a page: {ended}")
    if ended.code == 0:
        return HELD_WELL if page.exists() else Result(WRONG, f"no page: {ended}")
    return refused(ended)


KINDS = [
    Kind("disk error at an operation", failing_operation, full=80, share=4),
    Kind("disk error at an operation of the report", report_on_failing_disk, full=24, share=2),
    Kind("full disk", full_disk, full=24, share=2),
    Kind("disk that becomes read-only", read_only, full=12, share=1),
    Kind("limit on the size of files", partial(limited, resource.RLIMIT_FSIZE, 0, 40_000), full=12, share=1),
    Kind("limit on open files", partial(limited, resource.RLIMIT_NOFILE, 12, 40), full=24, share=2),
    Kind("stdout or stderr that breaks", broken_stdout, full=12, share=1),
    Kind("results folder that vanishes", vanishing, full=16, share=1),
]
