"""Fast process exit for the commands: skips freeing memory, since Python would take a second to free torch's objects one by one.

All other shutdown steps are done in Python's order: non-daemon threads are joined (with a timeout), atexit functions are called,
and open files are closed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # not imported from typing, which would delay interrupt.exit_at_once()
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread
    from types import ModuleType
    from typing import NoReturn

PATIENCE_S = 20.0  # timeout for non-daemon threads


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Call main() and end the process with the exit code that it returns or passes to sys.exit().

    Python's normal exit is used under a debugger, a profiler or ``python -i``, and if stdout cannot be flushed.
    """
    try:
        code: object = main()
    except SystemExit as stop:
        code = stop.code
    code = 0 if code is None else code
    if isinstance(code, int) and not (sys.gettrace() or sys.getprofile() or sys.flags.inspect) and _finished():
        os._exit(code & 0xFF)
    raise SystemExit(code)


def _others(threading: ModuleType) -> list[Thread]:
    """Non-daemon threads other than this one."""
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.current_thread()]


def _join(threading: ModuleType) -> None:
    """Shut down thread pools, as Python does first, then wait up to PATIENCE_S for the remaining threads."""
    import time

    callbacks = vars(threading).get("_threading_atexits", [])  # registered by concurrent.futures
    while callbacks:
        callbacks.pop()()
    end = time.monotonic() + PATIENCE_S
    for thread in _others(threading):
        thread.join(max(0.0, end - time.monotonic()))


def _finished() -> bool:
    """Run Python's shutdown steps; False if stdout or stderr cannot be flushed, for which Python has its own exit code."""
    import atexit
    import ctypes
    import gc
    import io
    import threading

    _join(threading)
    if _others(threading):  # started by an environment, perhaps; waiting for them would keep a finished run alive
        names = ", ".join(thread.name for thread in _others(threading) if not type(thread).__module__.startswith("joblib."))
        if names:  # the threads of an interrupted parallel sweep are joblib's
            print(f"left without threads that do not end: {names}; make them daemons, or end them in close()", file=sys.stderr)
    else:
        vars(threading)["_shutdown"]()  # not in the type stubs
    atexit._run_exitfuncs()
    standard = [sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__]
    standard += [stream.buffer for stream in standard if stream is not None and hasattr(stream, "buffer")]
    layers: list[list[io.IOBase]] = [[], [], []]  # closed in this order: text, Python buffers (gzip), C buffers
    kinds: dict[type, int | None] = {}
    for found in gc.get_objects():
        kind = type(found)
        if kind not in kinds:
            buffer = issubclass(kind, io.BufferedIOBase)
            kinds[kind] = 0 if issubclass(kind, io.TextIOBase) else (2 if kind.__module__ == "_io" else 1) if buffer else None
        layer = kinds[kind]
        if layer is not None and not any(found is stream for stream in standard):
            layers[layer].append(found)
    for found in (found for layer in layers for found in layer):
        try:
            found.close()
        except Exception as error:  # as in a finalizer: there is no caller to handle it
            if sys.stderr is not None:
                print(f"Exception ignored in: {found!r}: {type(error).__name__}: {error}", file=sys.stderr)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        ctypes.CDLL(None).fflush(None)  # C's stdio buffers
    except (OSError, ValueError):
        return False
    return True
