"""The end of a command's process without freeing memory: Python would free torch's objects one by one, which takes a second.

All else that Python does at its end is done, in its order: threads that are no daemons are joined, for some seconds, functions of
atexit are called, and files that are still open are closed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as typing has it, whose import would delay interrupt.exit_at_once()
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread
    from types import ModuleType
    from typing import NoReturn

PATIENCE_S = 20.0  # for threads that are no daemons


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Call main() and end the process with the exit code that it returns, or exits with.

    A debugger, a profiler, ``python -i`` and a stdout that cannot be flushed get the usual end of Python.
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
    """Threads besides this one that are no daemons."""
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.current_thread()]


def _join(threading: ModuleType) -> None:
    """End pools of threads, as Python does first, and wait for the other threads, but no longer than PATIENCE_S."""
    import time

    callbacks = vars(threading).get("_threading_atexits", [])  # of concurrent.futures
    while callbacks:
        callbacks.pop()()
    end = time.monotonic() + PATIENCE_S
    for thread in _others(threading):
        thread.join(max(0.0, end - time.monotonic()))


def _finished() -> bool:
    """Do the work of Python's end; False if stdout or stderr cannot be flushed, which Python reports with a code of its own."""
    import atexit
    import ctypes
    import gc
    import io
    import threading

    _join(threading)
    if _others(threading):  # an environment may start some; waiting for them would keep a finished run alive
        names = ", ".join(thread.name for thread in _others(threading))
        print(f"left without threads that do not end: {names}; make them daemons, or end them in close()", file=sys.stderr)
    else:
        vars(threading)["_shutdown"]()  # which type checkers do not know
    atexit._run_exitfuncs()
    standard = [sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__]
    standard += [stream.buffer for stream in standard if stream is not None and hasattr(stream, "buffer")]
    layers: list[list[io.IOBase]] = [[], [], []]  # texts, buffers written in Python such as gzip's, then C's, which both may use
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
        except Exception as error:  # as in a finalizer, nobody could handle it
            if sys.stderr is not None:
                print(f"Exception ignored in: {found!r}: {type(error).__name__}: {error}", file=sys.stderr)
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        ctypes.CDLL(None).fflush(None)  # of C's own
    except (OSError, ValueError):
        return False
    return True
