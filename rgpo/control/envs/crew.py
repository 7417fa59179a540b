"""Threads that do the parts of a repeated piece of work in parallel, once per step of the environments."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence


class Crew:
    """Each call runs all functions of a sequence: the first in the calling thread, every other one in its own thread.

    Waking the threads costs about 20 us per call, so this pays off for functions that release the GIL for longer than that.
    """

    def __init__(self, parts: Sequence[Callable[[], None]]) -> None:
        self._first, *others = parts
        self._workers = [_Worker(part) for part in others]
        for worker in self._workers:
            weakref.finalize(self, worker.dismiss)

    def __call__(self) -> None:
        """Raises: the first error of any part, once all parts have returned."""
        for worker in self._workers:
            worker.begin.release()
        try:
            self._first()
        finally:
            for worker in self._workers:
                worker.ended.acquire()
        errors = [worker.error for worker in self._workers if worker.error is not None]
        for worker in self._workers:
            worker.error = None
        if errors:
            raise errors[0]


class _Worker:
    """One thread; releasing the lock ``begin`` starts its work, and it releases ``ended`` when the work is done."""

    def __init__(self, part: Callable[[], None]) -> None:
        self.begin, self.ended = threading.Lock(), threading.Lock()
        self.begin.acquire()
        self.ended.acquire()
        self.error: BaseException | None = None
        self._part: Callable[[], None] | None = part
        threading.Thread(target=self._work, daemon=True, name="rgpo-crew").start()

    def _work(self) -> None:
        while True:
            self.begin.acquire()
            if self._part is None:
                return
            try:
                self._part()
            except BaseException as error:  # raised again by the thread that called
                self.error = error
            self.ended.release()

    def dismiss(self) -> None:
        """End the thread, which must be waiting."""
        self._part = None
        self.begin.release()
