"""rgpo-run and rgpo-report in forked processes, which costs a tenth of a new one: torch, hydra and rgpo are imported once."""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from .outcomes import HANG, REFUSED, TRACEBACK, WRONG, Result

PATIENCE_S = 60.0
MEMORY = 6 * 2**30  # bytes that a command may allocate beyond what is imported
LONGEST_SENTENCE = 1_500  # characters of a refusal, with two paths in it
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
WARM = ["gymnasium.envs.classic_control.cartpole", "hydra_plugins.hydra_joblib_launcher.joblib_launcher", "pyarrow.dataset"]
WARM += ["torch._dynamo", "rgpo.api", "rgpo.cli.run", "rgpo.cli.sweep", "rgpo.control.task", "rgpo.language.task"]
WARM += ["rgpo.report.build", "rgpo.report.cli", "rgpo.runtime.runner"]
_libc = ctypes.CDLL(None)


class Beginning(TypedDict, total=False):
    """Settings of a forked process."""

    env: Mapping[str, str]  # added to the environment
    first: Callable[[], None] | None  # called in that process before main


class Options(Beginning, total=False):
    """Settings of a command."""

    meanwhile: Callable[[int], None] | None  # called here with its process id while it runs
    patience_s: float


class Ended(NamedTuple):
    """A command that ended: exit code (negative for a signal, None if it had to be killed after PATIENCE_S) and its output."""

    words: tuple[str, ...]
    code: int | None
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def shown(self) -> str:
        """The command, shortened."""
        return " ".join(self.words)[:120]

    def __str__(self) -> str:
        lines = (self.err.strip() or self.out.strip()).splitlines()
        frames = [line.split("/")[-1] for line in lines if line.startswith('  File "')] if "Traceback" in self.text else []
        return f"exit {self.code}, {''.join(lines[-1:])[-300:]!r} {' < '.join(reversed(frames[-4:]))}"


def warm_up() -> None:
    """Import everything that commands use, and keep it out of the collector's way."""
    before = dict(os.environ)
    for module in WARM:
        importlib.import_module(module)
    from rgpo.cli.config import compose_jobs

    compose_jobs(["algo=ppo", "task=cartpole"], False, None)
    os.environ.clear()  # torch sets a folder for compiled code
    os.environ.update(before)
    gc.collect()
    gc.freeze()


def adopt_orphans() -> None:
    """Die with the parent, and become the parent of processes whose own parent has ended, so that kill_descendants finds them."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    """Kill and reap every process below this one."""
    while children := _children(os.getpid()):
        for pid in [grandchild for child in children for grandchild in (child, *_children(child))]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pid in children:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                continue


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # it ended meanwhile
        return []


def rgpo_run(words: Sequence[str], cwd: Path, **options: Unpack[Options]) -> Ended:
    """`rgpo-run words` in the folder cwd."""
    from rgpo.cli.run import main

    return command(main, ("rgpo-run", *words), cwd, **options)


def rgpo_report(words: Sequence[str], cwd: Path, **options: Unpack[Options]) -> Ended:
    """`rgpo-report 'figures=[]' words` in the folder cwd."""
    from rgpo.report.cli import main

    return command(main, ("rgpo-report", "figures=[]", *words), cwd, **options)


class Started(NamedTuple):
    """A command that runs: its words, process id and the folder of its output."""

    words: tuple[str, ...]
    pid: int
    outputs: Path


def start(main: Callable[[], int | None], words: Sequence[str], cwd: Path, **beginning: Unpack[Beginning]) -> Started:
    """Start main() in a forked process as the command `words`."""
    outputs = cwd.parent / f".out-{time.monotonic_ns()}"
    outputs.mkdir()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _become(main, words, cwd, beginning, outputs)
    return Started(tuple(words), pid, outputs)


def finish(started: Started, patience_s: float = PATIENCE_S) -> Ended:
    """Wait for the end of a command."""
    code = _wait(started.pid, patience_s)
    out, err = ((started.outputs / name).read_bytes().decode(errors="replace") for name in ("out", "err"))
    if os.environ.get("CAMPAIGN_SHOWS"):
        print(f"$ {' '.join(started.words)}\n{out}{err}-> {code}".encode(errors="backslashreplace").decode(), flush=True)
    return Ended(started.words, code, out, err)


def command(
    main: Callable[[], int | None],
    words: Sequence[str],
    cwd: Path,
    *,
    meanwhile: Callable[[int], None] | None = None,
    patience_s: float = PATIENCE_S,
    **beginning: Unpack[Beginning],
) -> Ended:
    """Run main() in a forked process as the command `words`, and kill what it leaves running."""
    started = start(main, words, cwd, **beginning)
    if meanwhile is not None:
        meanwhile(started.pid)
    ended = finish(started, patience_s)
    kill_descendants()
    return ended


def _wait(pid: int, patience_s: float) -> int | None:
    ends, pause = time.monotonic() + patience_s, 0.002
    while time.monotonic() < ends:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    return None


def _become(main: Callable[[], int | None], words: Sequence[str], cwd: Path, beginning: Beginning, outputs: Path) -> None:
    """Be the command until it ends, as a new Python process would."""
    code: object = 1
    try:
        os.setsid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(outputs / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(3, 1024)  # a new process inherits none of the worker's
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "wb", closefd=False), encoding="utf-8")
        err = io.FileIO(2, "wb", closefd=False)
        sys.stderr = io.TextIOWrapper(err, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        sys.argv = list(words)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        os.environ.update(beginning.get("env", {}))
        os.chdir(cwd)
        if (first := beginning.get("first")) is not None:
            first()
        code = main()
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = 120
    finally:
        os._exit(code if isinstance(code, int) else 0)


def fault(ended: Ended) -> Result | None:
    """The result of a command that hangs, prints a traceback, ends by itself with a signal, or refuses improperly; else None."""
    if ended.code is None:
        return Result(HANG, f"{ended.shown} did not end")
    if "Traceback (most recent call last)" in ended.text:
        return Result(TRACEBACK, f"{ended.shown}: {ended}")
    if ended.code < 0 or ended.code not in (0, 1, 2, 130, 143):
        return Result(TRACEBACK, f"{ended.shown}: ended by itself with {ended}")
    if ended.code in (1, 2) and not ended.err.strip():
        return Result(WRONG, f"{ended.shown}: no reason on stderr: {ended}")
    unprintable = sorted({char for char in ended.text if (ord(char) < 32 and char not in "\n\t\r") or char in "\x7f\x9b"})
    if unprintable:
        return Result(WRONG, f"{ended.shown}: printed control characters {unprintable}")
    longest = max(map(len, ended.text.splitlines()), default=0)
    if longest > LONGEST_SENTENCE + len(" ".join(ended.words)):
        return Result(WRONG, f"{ended.shown}: printed a line of {longest:,} characters")
    return None


def refused(ended: Ended) -> Result:
    """The result of a command that ended with 1 or 2: refused properly if it gave one sentence."""
    lines = ended.err.strip().splitlines()
    if len(lines) != 1:
        return Result(WRONG, f"{ended.shown}: {len(lines)} lines for a refusal: {ended}")
    return Result(REFUSED, lines[0])
