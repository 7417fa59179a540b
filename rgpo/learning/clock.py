"""Wall and CPU seconds of the phases of an iteration."""

from __future__ import annotations

import time


class Clock:
    """Seconds since the last call, summed by phase: wall time as `time/PHASE_s` and CPU time as `time/PHASE_cpu_s`.

    CPU time is that of all threads of this process, so it hardly depends on other load on the machine.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = _now()

    def add(self, phase: str) -> None:
        """Charge the time since the last call to a phase."""
        self._charge(phase, self._last)
        self._last = _now()

    def total(self, phase: str) -> None:
        """Charge the time since construction to a phase."""
        self._charge(phase, self._start)

    def _charge(self, phase: str, since: tuple[float, float]) -> None:
        for name, now, then in zip((f"time/{phase}_s", f"time/{phase}_cpu_s"), _now(), since, strict=True):
            self.seconds[name] = self.seconds.get(name, 0.0) + now - then


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
