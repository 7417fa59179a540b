"""SIGINT and SIGTERM handling."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from types import FrameType

QUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)  # submitit handles one of them as a warning that the job must leave its node
ECHO_S = 1.0  # within this time, a repeated signal is taken to be the launcher forwarding the first one


class Interrupted(Exception):
    """A signal stopped the run, after a checkpoint was saved if there was anything to save."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number


class Signals:
    """On the first SIGINT or SIGTERM, the loop finishes its iteration and stops; a second signal stops the run immediately.

    Under submitit, the warning signal sent by the queue also stops the run with a checkpoint (exit code 138 or 140), and SIGTERM
    is left to submitit's own handler. Before the first iteration there is nothing to finish: Interrupted is raised immediately.
    Python allows signal handlers only in the main thread; a run in another thread does not receive signals.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.iterating = False  # set to True by the loop
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
            raise Interrupted(number)  # if a destructor swallows it, the loop still stops because of ``received``
        with suppress(RuntimeError):  # the signal arrived while the loop was printing
            print("stopping after this iteration; send the signal again to stop immediately", flush=True)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
