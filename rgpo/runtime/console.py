"""What a run says: a banner, a progress line, a summary. Rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN_EVERY_S = 30.0


def banner(run_dir: Path, config: Mapping[str, Any], facts: Mapping[str, Any], num_iterations: int, note: str) -> str:
    """What runs, where, and from which code."""
    choices = config["choices"]
    gate = config["gate"]
    details = ", ".join(f"{key} {value}" for key, value in gate.items() if key != "_target_" and not isinstance(value, dict))
    commit = facts["commit"][:10] + (" with changes" if facts["dirty"] else "") if facts["commit"] else "no repository"
    versions = facts["versions"]
    task = choices["task"] if choices["scale"] == "none" else f"{choices['task']} (scale {choices['scale']})"
    size = facts["num_processes"]
    shared = f" in each of {size} processes" if size > 1 else ""
    return "\n".join(
        [
            f"{task} | {choices['algo']}: gate {choices['gate']} ({details}), penalty {choices['penalty']}, "
            f"update {choices['update']}, seed {config['seed']}",
            f"  {num_iterations:,} iterations, {facts['num_threads']} thread(s){shared}, {note}",
            f"  results in {run_dir}",
            f"  rgpo {versions['rgpo']} ({commit}), torch {versions['torch']}, mujoco {versions['mujoco']}",
        ]
    )


class Progress:
    """One line that moves on a terminal, or one plain line every half minute."""

    def __init__(self, num_iterations: int, start: int) -> None:
        self.num_iterations = num_iterations
        self._last = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=num_iterations, completed=start)
            self._bar.start()

    def update(self, iteration: int, env_steps: int, metrics: Mapping[str, Any], headline: str) -> None:
        """Show the state after an iteration."""
        text = (
            f"steps {env_steps:,}  {headline}  KL {metrics.get('kl/old_exact', float('nan')):.4f}  "
            f"{metrics.get('speed/env_steps_per_s', float('nan')):,.0f} steps/s"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=iteration, description=text)
        elif time.monotonic() - self._last >= PLAIN_EVERY_S or iteration == self.num_iterations:
            self._last = time.monotonic()
            print(f"  iteration {iteration:,}/{self.num_iterations:,}  {text}", flush=True)

    def close(self) -> None:
        """Remove the line."""
        if self._bar is not None:
            self._bar.stop()


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Left-aligned columns as wide as their longest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]
    )
