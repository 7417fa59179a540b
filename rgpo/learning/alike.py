"""The number of runs of a sweep that differ in their seed alone, this one included: they share compiled code."""

from __future__ import annotations

from contextvars import ContextVar

num_alike: ContextVar[int] = ContextVar("num_alike", default=1)
