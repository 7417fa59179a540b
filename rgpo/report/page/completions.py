"""What language models wrote before and after training: pairs of completions of the same held-out prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rgpo.report.read.groups import Group
from rgpo.report.read.load import Problem, Run
from rgpo.report.read.rows import Unreadable, read_table

FILE = "samples.parquet"
COLUMNS = ("iteration", "prompt_id", "prompt", "completion", "proxy", "gold", "kl_ref", "length")
MAX_CHARACTERS = 4_000  # of a text on the page
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # control and turning characters


class Pair(NamedTuple):
    """One prompt's completion by the reference policy (iteration 0) and by the last sampled one; rows of samples.parquet."""

    label: str
    task: str
    seed: int
    prompt: str
    before: dict[str, Any]
    after: dict[str, Any]


def pairs(groups: Sequence[Group], limit: int) -> tuple[list[Pair], list[Problem]]:
    """Up to `limit` pairs, as many of each run; prompts in the order of their ids, the same ones for every run."""
    runs = [(group, run) for group in groups for run in group.used if _files(run)]
    each = max(1, limit // len(runs)) if runs else 0
    found: list[Pair] = []
    problems = []
    for group, run in runs:
        try:
            found += _of_run(group.label, run, each)
        except (Unreadable, FileNotFoundError) as error:
            problems.append(Problem(run.where, f"{error}; its completions are left out"))
    return found[:limit], problems


def _of_run(label: str, run: Run, limit: int) -> list[Pair]:
    tables = [read_table(path, COLUMNS) for path in _files(run)]
    rows = [dict(zip(table, values, strict=True)) for table in tables for values in zip(*table.values(), strict=True)]
    last = max((row["iteration"] for row in rows), default=0)
    at = {(row["iteration"], row["prompt_id"]): {**row, "completion": _short(row["completion"])} for row in rows}
    prompts = sorted(prompt for i, prompt in at if i == 0 and (last, prompt) in at) if last else []
    return [
        Pair(label, run.task, run.seed, _short(at[0, prompt]["prompt"]), at[0, prompt], at[last, prompt])
        for prompt in prompts[:limit]
    ]


def _files(run: Run) -> list[Path]:
    """samples.parquet of a finished run, the parts of a running one."""
    joined = run.folder / FILE
    return [joined] if joined.exists() else sorted((run.folder / "samples").glob("part-*.parquet"))


def _short(text: str) -> str:
    text = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} … ({len(text):,} characters)"
