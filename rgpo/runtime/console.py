"""A run's console output: banner, progress and tables; Rich is used on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rgpo.errors import MAX_LINE, printable
from rgpo.runtime.metrics import number
from rgpo.runtime.provenance import Provenance
from rgpo.runtime.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_EVERY_S = 30.0


def banner(run_dir: Path, settings: Settings, facts: Provenance, num_iterations: int, note: str, found: Mapping[str, str]) -> str:
    """Task, algorithm and its parts, length, folder and versions of a run.

    note: a clause on how updates are computed; found: facts about the task that are not in the configuration.
    """
    commit = facts["commit"][:10] + (" with changes" if facts["dirty"] else "") if facts["commit"] else "no repository"
    versions, threads, size = facts["versions"], facts["num_threads"], facts["num_processes"]
    parts = {**found, **facts["algorithm"]}
    width = max(map(len, parts), default=0)
    clauses = [
        f"{num_iterations:,} iterations",
        f"{threads} thread{'s' * (threads > 1)}" + (f" in each of {size} processes" if size > 1 else ""),
        *([note] if note else []),
    ]
    return "\n".join(
        [
            f"{settings.task} | {settings.choice('algo')}, seed {settings.seed}",
            *(f"  {part:{width}}  {text}" for part, text in parts.items()),
            f"  {', '.join(clauses)}",
            f"  results in {printable(str(run_dir), MAX_LINE)}",
            f"  rgpo {versions['rgpo']} ({commit}), torch {versions['torch']}, mujoco {versions['mujoco']}",
        ]
    )


class Progress:
    """Progress line, updated in place on a terminal; elsewhere, a plain line every half minute."""

    def __init__(self, num_iterations: int, start: int) -> None:
        self.num_iterations = num_iterations
        self._last = time.monotonic()
        self._text = ""  # the last iteration's line, until it is printed
        self._bar: RichProgress | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=num_iterations, completed=start)
            self._bar.start()

    def update(self, iteration: int, env_steps: int, metrics: Mapping[str, float | list[float]], headline: str) -> None:
        """Show the progress after an iteration."""
        parts = [f"steps {env_steps:,}", headline]
        if "kl/old_exact" in metrics:
            parts.append(f"KL {nats(number(metrics, 'kl/old_exact'))}")
        parts.append(f"{number(metrics, 'speed/env_steps_per_s'):,.0f} steps/s")
        text = "  ".join(part for part in parts if part)
        self._text = f"  iteration {iteration:,}/{self.num_iterations:,}  {text}"
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration, description=text)
        elif time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._print()

    def close(self) -> None:
        """Stop updating and print the last line."""
        if self._bar is not None:
            self._bar.stop()
        if self._text:
            self._print()

    def _print(self) -> None:
        self._last = time.monotonic()
        print(self._text, flush=True)
        self._text = ""


def nats(kl: float) -> str:
    """A divergence to three digits; below the rounding of float32, where even its sign is arbitrary, only "below 1e-7"."""
    return "below 1e-7" if abs(kl) < 1e-7 else f"{kl:.3g}"


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Left-aligned columns, each as wide as its longest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    )
