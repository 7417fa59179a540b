"""Films of episodes, made by rgpo-eval video=true in a run's folder, embedded in the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rgpo.report.read.groups import Group
from rgpo.report.read.run import Problem
from rgpo.runtime.reader import Missing, Unreadable, opened

FILES = {"evaluation/episode.mp4": ("video/mp4", 4, b"ftyp"), "evaluation/episode.gif": ("image/gif", 0, b"GIF8")}
MAX_BYTES = 4_000_000  # per film; larger ones are linked
MAX_FILMS = 12  # per experiment


class Film(NamedTuple):
    """A run's episode; data is empty if the file is too large for the page."""

    label: str
    run_id: str
    task: str
    seed: int
    path: Path
    kind: str  # video/mp4 or image/gif
    data: str  # base64


def films(groups: Sequence[Group]) -> tuple[list[Film], list[Problem]]:
    """Up to MAX_FILMS films, starting with the first seed of every group."""
    runs = [(group, run) for group in groups for run in group.runs]
    rank = {id(run): k for group in groups for k, run in enumerate(group.runs)}
    found: list[Film] = []
    problems: list[Problem] = []
    for group, run in sorted(runs, key=lambda pair: rank[id(pair[1])]):
        for name, (kind, offset, mark) in FILES.items():
            path = run.folder / name
            try:
                data = _read(path, offset, mark)
            except Missing:
                continue
            except Unreadable as error:
                problems.append(Problem(run.where, f"{error}; its film is left out"))
                continue
            found.append(Film(group.label, run.run_id, run.task, run.seed, path, kind, base64.b64encode(data).decode()))
            break
    return found[:MAX_FILMS], problems


def _read(path: Path, offset: int, mark: bytes) -> bytes:
    """The contents of a film; empty if it exceeds MAX_BYTES.

    Raises: Unreadable if the file has another type; Missing if there is none.
    """
    with opened(path, 1 << 40) as file:
        data = file.read(MAX_BYTES + 1)
    if data[offset : offset + len(mark)] != mark:
        raise Unreadable(f"{path.name} is no film")
    return data if len(data) <= MAX_BYTES else b""
