"""Runs of scale=paper on tiny random checkpoints in the real format, in the test's own process."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rgpo.cli import run as command

SIZES = {"num_prompts": 4, "group_size": 2, "max_new_tokens": 6, "num_eval_prompts": 4, "num_samples": 4}
SOURCE = {"heldout_share": 0.3, "dtype": "float32", "reward_dtype": "float32", "device": "cpu"}


class Ran(NamedTuple):
    """Exit code, folder and printed text of a command."""

    code: int
    folder: Path
    printed: str


def jsonl(file: Path, rows: Iterable[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def words(results: Path, model: Path, data: Path, *more: str) -> list[str]:
    """A command line of two iterations."""
    given = ["task=qwen_rlhf", "scale=paper", "algo=grpo", "num_iterations=2", "eval_every=2", "gradvar_every=0"]
    given += [f"results_dir={results}", "task.lora.rank=2", f"task.source.model={model}", f"task.source.data={data}"]
    given += [f"task.{key}={value}" for key, value in SIZES.items()]
    given += [f"task.source.{key}={value}" for key, value in SOURCE.items()]
    typed = {word.partition("=")[0] for word in more}
    return [word for word in given if word.partition("=")[0] not in typed] + list(more)


def run(given: Sequence[str]) -> Ran:
    """rgpo-run with these words."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = command._main(list(given))
    results = Path(next(word.partition("=")[2] for word in given if word.startswith("results_dir=")))
    folders = list(results.rglob("config.yaml"))
    latest = max(folders, key=lambda file: file.stat().st_mtime).parent if folders else results
    return Ran(code, latest, printed.getvalue())
