"""The rows of a results folder without what a clock or the number of starts decides, for bit-exact comparison."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .outcomes import HELD_WELL, WRONG, Result

Columns = dict[str, str]  # column -> its values; repr distinguishes every float, and NaN equals NaN
UNCOMPARED = ("time/", "speed/", "attempt", "git_sha")  # the checkout may get a commit meanwhile


def columns(file: Path) -> Columns:
    """The compared columns of a parquet file."""
    with file.open("rb") as stream:  # pyarrow takes no names that are not UTF-8
        table = pq.read_table(stream, use_threads=False)
    return {name: repr(table[name].to_pylist()) for name in table.column_names if not name.startswith(UNCOMPARED)}


def results(folder: Path) -> dict[str, Columns]:
    """The joined files of all runs that are not set aside, by their place below a results folder."""
    files = [file for file in sorted(folder.glob("*/*/*.parquet")) if not file.parent.name.startswith(".")]
    return {str(file.relative_to(folder)): columns(file) for file in files}


def iterations(folder: Path) -> set[tuple[str, int]]:
    """(run, iteration) of each row in each readable file below a folder, also in set-aside folders; no damaged values."""
    found: set[tuple[str, int]] = set()
    for file in folder.rglob("*.parquet*"):  # those set aside as .damaged included
        if file.is_symlink() or not file.is_file():
            continue
        try:
            with file.open("rb") as stream:
                table = pq.read_table(stream, use_threads=False, columns=["run_id", "iteration"])
            rows = zip(table["run_id"].to_pylist(), table["iteration"].to_pylist(), strict=True)
            found |= {(run, i) for run, i in rows if isinstance(run, str) and isinstance(i, int)}
        except (pa.ArrowException, OSError, KeyError, UnicodeError):
            continue
    return found


def equal(found: Path, expected: Path) -> Result:
    """Held if all runs below a results folder have the same rows and samples, bit for bit, and no parts are left."""
    try:
        ours, theirs = results(found), results(expected)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        return Result(WRONG, f"a joined file cannot be read: {' '.join(str(error).split())[:200]}")
    if missing := sorted(theirs.keys() - ours.keys()):
        return Result(WRONG, f"missing: {', '.join(missing)}")
    if more := sorted(ours.keys() - theirs.keys()):
        return Result(WRONG, f"more than there should be: {', '.join(more)}")
    for name, values in theirs.items():
        different = [column for column in {**values, **ours[name]} if values.get(column) != ours[name].get(column)]
        if different:
            rows = ours[name].get("iteration", "no iterations")
            return Result(WRONG, f"{name}: other values of {', '.join(different[:5])}; its iterations are {rows[:80]}")
    left = [str(path.relative_to(found)) for path in found.glob("*/[!.]*/*") if path.name in ("metrics", "samples")]
    return Result(WRONG, f"parts are left: {', '.join(left)}") if left else HELD_WELL
