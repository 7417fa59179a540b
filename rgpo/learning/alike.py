"""The number of runs in a sweep that differ only in their seed, this one included; they share compiled code."""

from __future__ import annotations

from contextvars import ContextVar

num_alike: ContextVar[int] = ContextVar("num_alike", default=1)
