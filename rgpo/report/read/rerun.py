"""Repeat a run, at its commit or with the current code, and compare its rows bit by bit with the stored ones."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rgpo.errors import MAX_LINE, ConfigError, first_line, printable, require
from rgpo.report.read import rows
from rgpo.report.read.committed import extract
from rgpo.report.read.load import RUN_FOLDER
from rgpo.report.read.repeated import record
from rgpo.report.read.run import Problem
from rgpo.report.stats.bootstrap import Floats
from rgpo.runtime import manifest, reader
from rgpo.runtime.former import RENAMED_COLUMNS
from rgpo.runtime.provenance import Provenance
from rgpo.runtime.reader import Unreadable
from rgpo.runtime.schema import CLOCK_PREFIXES, COUNTERS, PROVENANCE

COMMIT, HEAD = "commit", "head"
DROPPED = ("results_dir", "force", "plan", "exports", "hydra/launcher", "tags")  # do not affect numbers
ROUNDING = 1e-5  # relative difference attributed to float32 rounding
MAX_SHOWN = 4  # most columns listed
LEFT_OUT = b"left_out"  # key in a file's metadata: JSON list of columns that were measured but not kept


class Difference(NamedTuple):
    """The largest relative difference between two runs' rows, and the first iteration with more than rounding (0: none)."""

    largest: float
    iteration: int
    columns: tuple[str, ...]  # columns that differ from there on
    lacking: tuple[str, ...]  # columns that only one of the runs has


def verify_run(folder: Path, at: str, record_in: Path | None = None) -> tuple[str, list[Problem]]:
    """Repeat a run and report whether all columns except clock measurements are equal.

    record_in: a file to which an equal repetition is added, with the digest of its code.

    Raises: ConfigError if the folder does not contain a repeatable run, or if the repetition fails.
    """
    require(at in (COMMIT, HEAD), "at", at, "give commit (of the run, in a temporary checkout) or head (the present code)")
    try:
        facts = reader.read_json(folder / "provenance.json", Provenance)
        stored, left_out = _read(folder), _left_out(folder)
    except Unreadable as error:
        raise ConfigError(f"verify={folder}: {error}; give the folder of a finished run") from None
    words = _words(folder, facts)
    commit = facts.get("commit")
    if at == COMMIT and (commit is None or facts.get("dirty")):
        why = "has uncommitted changes" if commit else "has no commit"
        raise ConfigError(f"verify={folder}: its code {why}; give at=head to repeat it with the present code")
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if at == COMMIT:
            try:
                extract(Path(__file__).parents[3], str(commit), ["rgpo", "conf", "pyproject.toml"], work / "code")
            except (OSError, ValueError) as error:
                why = f"its commit {str(commit)[:10]} cannot be extracted ({error})"
                raise ConfigError(f"verify={folder}: {why}; give at=head to repeat it with the present code") from None
        repeated, by = _repeat(words, work, at == COMMIT, folder)
        found = difference(stored, {name: column for name, column in repeated.items() if name not in left_out})
    where = f"{folder.parent.name}/{folder.name}"
    code = f"at its commit {str(commit)[:10]}" if at == COMMIT else "with the present code"
    notes = [Problem(where, text) for text in _notes(facts, by, found)]
    if found.iteration:
        more = len(found.columns) - MAX_SHOWN
        columns = ", ".join(found.columns[:MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")
        summary = f"{where}: different from iteration {found.iteration} on ({columns}), repeated {code}"
        return summary, [Problem(where, "the repetition has other numbers"), *notes]
    if found.lacking:
        summary = f"{where}: different, since only one of the two has {', '.join(found.lacking)}, repeated {code}"
        return summary, [Problem(where, "the repetition has other columns"), *notes]
    equal = "equal" if found.largest == 0 else f"equal to rounding (largest relative difference {found.largest:.2g})"
    if record_in is not None:
        commit = f"{by.get('commit') or ''}{'-dirty' if by.get('dirty') else ''}"
        record(record_in, where, {"code": by.get("code", ""), "commit": commit, "found": equal.partition(" (")[0]})
    unkept = f"; {len(left_out)} columns that the stored rows leave out were not compared" if left_out else ""
    return f"{where}: {equal}, {len(stored['iteration'])} iterations, repeated {code}{unkept}", notes


def difference(first: Mapping[str, Floats], second: Mapping[str, Floats]) -> Difference:
    """Compare the columns (I,) or (I, K) of two runs; a shorter run differs from its end on."""
    common = sorted(first.keys() & second.keys())
    lacking = tuple(sorted(first.keys() ^ second.keys()))
    length = min(len(first["iteration"]), len(second["iteration"]))
    largest, earliest = 0.0, {}
    for name in common:
        a, b = first[name][:length], second[name][:length]
        if a.shape != b.shape:
            earliest[name] = 0
            continue
        gap = relative_gap(a, b)
        gap = gap.max(axis=1, initial=0.0) if gap.ndim == 2 else gap
        far = np.flatnonzero(gap > ROUNDING)
        if far.size:
            earliest[name] = int(far[0])
        largest = max(largest, float(gap.max(initial=0.0)))
    if len(first["iteration"]) != len(second["iteration"]) and not earliest:
        return Difference(largest, length + 1, ("iteration",), lacking)
    if not earliest:
        return Difference(largest, 0, (), lacking)
    row = min(earliest.values())
    return Difference(largest, int(first["iteration"][row]), tuple(n for n, at in earliest.items() if at == row), lacking)


def relative_gap(a: Floats, b: Floats) -> Floats:
    """|a - b| / max(|a|, |b|), but 0 where both are equal (nan included) and infinite where only one is finite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))
    return np.where(same, 0.0, np.where(np.isfinite(gap), gap, np.inf))


def _words(folder: Path, facts: Provenance) -> list[str]:
    """The arguments of the run's command, without those that do not affect its numbers.

    Raises: ConfigError if the stored command is not rgpo-run.
    """
    try:
        typed = shlex.split(facts.get("command") or "")
    except ValueError:
        typed = []
    if typed[:1] != ["rgpo-run"]:
        raise ConfigError(f"verify={folder}: provenance.json has no rgpo-run command; give a run that has one")
    return [word for word in typed[1:] if word.partition("=")[0].lstrip("+") not in DROPPED]


def _repeat(words: list[str], work: Path, of_commit: bool, folder: Path) -> tuple[dict[str, Floats], Provenance]:
    """Run the command in a subprocess, and read its rows and provenance.

    Raises: ConfigError if the command fails or leaves no rows.
    """
    results = work / "results"
    path = [str(work / "code")] if of_commit else [str(Path(__file__).parents[3])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])}
    module, _, function = _entry_point(work / "code").partition(":") if of_commit else ("rgpo.cli.run", ":", "main")
    start = f"import sys; from {module} import {function}; sys.exit({function}())"
    command = [sys.executable, "-c", start, *words, f"results_dir={results}"]
    place = work if of_commit else None  # not the current directory, which comes first on the path and may have an rgpo package
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)  # noqa: S603  # no shell
    found = [path for path in results.glob("*/*") if RUN_FOLDER.fullmatch(path.name)]
    if done.returncode or len(found) != 1:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        why = printable(lines[-1], MAX_LINE) if lines else f"exit code {done.returncode}"
        raise ConfigError(f"verify={folder}: the repetition failed ({why}); repeat its command by hand: {shlex.join(words)}")
    try:
        return _read(found[0]), reader.read_json(found[0] / "provenance.json", Provenance)
    except Unreadable as error:
        raise ConfigError(f"verify={folder}: the repetition left no rows ({first_line(error)}); repeat it by hand") from None


def _entry_point(code: Path) -> str:
    """module:function of rgpo-run in a checkout, which differs between versions."""
    try:
        found = str(tomllib.loads(reader.read_text(code / "pyproject.toml"))["project"]["scripts"]["rgpo-run"])
    except (Unreadable, tomllib.TOMLDecodeError, KeyError, TypeError):
        found = ""
    return found if re.fullmatch(r"rgpo[\w.]*:\w+", found) else "rgpo.cli.run:main"


def _read(folder: Path) -> dict[str, Floats]:
    """All columns that must agree between identical runs, under current names.

    Raises: Unreadable if there are no rows, or if config.yaml is damaged or does not belong to the rows.
    """
    path = folder / "metrics.parquet"
    with reader.parquet(path) as file:
        names = {RENAMED_COLUMNS.get(name, name) for name in file.schema_arrow.names}
    left_out = {*PROVENANCE, *COUNTERS} - {"iteration", "env_steps"}
    wanted = {name for name in names - left_out if not name.startswith(CLOCK_PREFIXES)}
    found = rows.read(folder, wanted)
    if why := manifest.damage(folder).get("config.yaml"):
        raise Unreadable(why)
    rows.require_own(found, reader.read_yaml(folder / "config.yaml"))
    return {name: column for name, column in found.columns.items() if name != "attempt"}


def _left_out(folder: Path) -> frozenset[str]:
    """Columns that were measured but not kept, under current names.

    Raises: Unreadable if the file or its list of columns is damaged.
    """
    with reader.parquet(folder / "metrics.parquet") as file:
        text = (file.schema_arrow.metadata or {}).get(LEFT_OUT, b"[]")
    try:
        return frozenset(RENAMED_COLUMNS.get(name, name) for name in map(str, json.loads(text)))
    except (ValueError, TypeError) as error:
        raise Unreadable(f"metrics.parquet: its list of left-out columns cannot be read ({first_line(error)})") from error


def _notes(facts: Provenance, by: Provenance, found: Difference) -> list[str]:
    """Clauses about differences other than numbers: versions of libraries, data and models, and missing columns."""
    now, then = by.get("versions", {}), facts.get("versions", {})
    changed = [
        f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name] and name != "rgpo"
    ]
    notes = [f"other versions: {', '.join(changed)}"] if changed else []
    return notes + ([f"measured in only one of the two: {', '.join(found.lacking)}"] if found.lacking else [])
