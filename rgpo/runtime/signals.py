"""SIGINT and SIGTERM handling."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from types import FrameType

QUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # one of which submitit handles: the job is to leave its node
ECHO_S = 1.0  # a launcher passes on a signal that its processes have received as well


class Interrupted(Exception):
    """The run was stopped by a signal, after a checkpoint if there was anything to keep."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number


class Signals:
    """Records the first SIGINT or SIGTERM, on which the loop ends the current iteration; a later one stops the run immediately.

    submitit has a handler of its own for the warning that its queue sends. After that signal, too, a run stops with a checkpoint
    (exit code 138 or 140), and SIGTERM is left to submitit. Before the first iteration there is nothing to finish: Interrupted is
    raised immediately. Python allows handlers in the main thread only; a run in another thread receives no signals.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.iterating = False  # set by the loop
        self._at = 0.0

    def __enter__(self) -> Signals:
        queue = [number for number in QUEUE_SIGNALS if callable(signal.getsignal(number))]
        handled = [signal.SIGINT, *(queue or [signal.SIGTERM])] if threading.current_thread() is threading.main_thread() else []
        self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._at < ECHO_S:
                return
            raise KeyboardInterrupt
        self.received, self._at = number, time.monotonic()
        if not self.iterating:
            raise Interrupted(number)  # the loop stops too, should a destructor swallow it
        with suppress(RuntimeError):  # the signal arrived while the loop was printing
            print("stopping after this iteration; send the signal again to stop immediately", flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
