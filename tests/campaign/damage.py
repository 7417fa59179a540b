"""Damage of each file of a run folder, then the command that wrote it, the report, or the list of runs."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from . import operations, store
from .commands import fault, refused, rgpo_report, rgpo_run
from .compare import equal, iterations
from .outcomes import HELD, HELD_WELL, REFUSED, WRONG, Case, Kind, Result

NEIGHBOR = "seed=2"  # a healthy run beside the damaged one
EXITS_WITH_REPORT = (0, 1)


def template(shared: Path, config: str, half: bool) -> Path:
    """A folder with results/ that holds a finished or half-finished run, and its finished neighbor."""

    def make(folder: Path) -> None:
        words = store.words(shared, config)
        whole = store.whole(shared, config)
        first = operations.dying(folder / "here" / "results", round(whole.operations * 0.6)) if half else None
        (folder / "here").mkdir()
        rgpo_run(words, folder / "here", first=first)
        ended = rgpo_run([*words, NEIGHBOR], folder / "here")
        assert ended.code == 0, ended.text
        shutil.copytree(folder / "here", folder / "expected", symlinks=True)
        if half:
            ended = rgpo_run(words, folder / "expected")
            assert ended.code == 0, ended.text
        for name in ("here", "expected"):
            ended = rgpo_report((), folder / name)
            assert ended.code is not None and (folder / name / "report").is_dir(), ended.text
            (folder / name / "report").rename(folder / f"report-{name}")

    return store.once(shared, f"template-{config}-{'half' if half else 'finished'}", make)


def the_run(results: Path) -> Path:
    """The run that gets damaged: the one of seed 1."""
    return next(path for path in results.glob("*/*-s1-*") if not path.name.startswith("."))


def other(path: Path) -> Path:
    """The same file of the neighbor, or any of its files."""
    run = next(part for part in path.parents if "-s1-" in part.name)
    neighbor = next(run.parent.glob("*-s2-*"))
    same = neighbor / path.relative_to(run)
    return same if same.is_file() else neighbor / ("metrics.parquet" if path.suffix == ".parquet" else "config.yaml")


# -- ways to damage a file


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def truncate(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(path.stat().st_size, 1)))


def garbage(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.choice((1, path.stat().st_size, 100_000))))


def overwrite_block(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = rng.randrange(max(len(data), 1))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.choice((b"\0" * 4096, b"\n[1, 2]\n", rng.randbytes(100))))


def other_type(path: Path, rng: random.Random) -> None:
    if path.suffix == ".parquet":
        columns = {"iteration": ["one", "two"], "attempt": [None, None], "run_id": [1.5, 2.5], "env_steps": [[1], [2]]}
        pq.write_table(pa.table(dict(rng.sample(sorted(columns.items()), rng.randint(1, 4)))), path)
    elif path.suffix == ".pt":
        import torch

        torch.save(rng.choice(([1, 2], {"format": 5}, {"format": [5]}, "word", torch.zeros(3))), path)
    else:
        path.write_text(rng.choice(("[]", "null", "3", '"text"', "true", '{"a": {"b": [1]}}', "{}", "[[[[]]]]")))


def other_values(path: Path, rng: random.Random) -> None:
    """One value of a JSON or YAML mapping gets another type."""
    try:
        content = json.loads(path.read_text())
        key = rng.choice(sorted(content))
        content[key] = rng.choice((None, [], {}, -1, 10**30, "text", True, float("nan"), 0))
        path.write_text(json.dumps(content))
    except (ValueError, TypeError, IndexError):
        lines = path.read_bytes().splitlines(keepends=True)
        del lines[rng.randrange(len(lines))]
        path.write_bytes(b"".join(lines))


def encoding(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes().decode("latin-1").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32"))))


def swap(path: Path, rng: random.Random) -> None:
    shutil.copyfile(other(path), path)


def directory(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "file").write_text("text")


def fifo(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link(to: Callable[[Path], Path], path: Path, rng: random.Random) -> None:
    target = to(path)
    path.unlink()
    path.symlink_to(target)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "deleted": lambda path, rng: path.unlink(),
    "emptied": empty,
    "truncated": truncate,
    "garbage": garbage,
    "a block of zeros": overwrite_block,
    "extended": append,
    "other type": other_type,
    "other values": other_values,
    "other encoding": encoding,
    "swapped": swap,
    "a directory": directory,
    "a fifo": fifo,
    "a link to the neighbor's": partial(link, lambda path: other(path).absolute()),
    "a link to nothing": partial(link, lambda path: path.with_name("nothing")),
    "a link to itself": partial(link, lambda path: path),
    "a link to /dev/zero": partial(link, lambda path: Path("/dev/zero")),
}


# -- what must hold afterwards


def kept(run: Path) -> int:
    """The last iteration that no command may lose: that of the checkpoint before the last one if the run is half-finished."""
    state = json.loads((run / "state.json").read_text())
    return int(state["iteration"]) - int(state["status"] != "completed")


def files(run: Path) -> list[str]:
    """Every file of a run folder; of the parts, all as well."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and not path.is_symlink())


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, size and contents of everything below a folder, the first megabyte of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts, data = path.lstat(), b""
        if stat.S_ISREG(facts.st_mode):
            with path.open("rb") as file:
                data = file.read(1 << 20)
        found[str(path.relative_to(folder))] = (facts.st_mode, facts.st_size if data else 0, data)
    return found


def run_again(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """The same command again: equal rows in the end and a word on what stays damaged, or a refusal that keeps all rows."""
    before = iterations(here / "results")
    neighbors = snapshot(other(file).parent)
    ended = rgpo_run(words, here)
    if found := fault(ended):
        return found
    if snapshot(other(file).parent) != neighbors:
        return Result(WRONG, f"the neighbor's folder was changed: {ended}")
    last = kept(the_run(made / "here" / "results"))
    if lost := {row for row in before - iterations(here / "results") if row[1] <= last}:
        return Result(WRONG, f"rows lost: {sorted(lost)}: {ended}")
    if ended.code in (1, 2):
        return refused(ended)
    if (found := equal(here / "results", made / "expected" / "results")) != HELD_WELL:
        return found._replace(detail=f"{found.detail}: {ended}")
    return HELD_WELL if file.name in ended.text or whole(file, made) else Result(WRONG, f"{file.name} is still damaged: {ended}")


def whole(file: Path, made: Path) -> bool:
    """True if a file is what a finished run has: the same keys, or the same bytes, or no such file."""
    run = the_run(made / "expected" / "results")
    expected = run / file.relative_to(next(part for part in file.parents if part.name == run.name))
    if not expected.exists() or file.name == ".lock":
        return True
    if file.is_symlink() or not file.is_file():
        return False
    if file.suffix == ".json":
        try:
            return bool(json.loads(file.read_text()).keys() == json.loads(expected.read_text()).keys())
        except (ValueError, AttributeError):
            return False
    if file.suffix == ".parquet":
        return True  # compared before
    return file.read_bytes() == expected.read_bytes() or file.suffix == ".pt"


def report(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """The report: the same tables, or the run is named; the neighbor is never lost."""
    run = the_run(here / "results").name
    before = snapshot(here / "results")
    ended = rgpo_report((), here)
    if found := fault(ended):
        return found
    if snapshot(here / "results") != before:
        return Result(WRONG, f"the report changed the results: {ended}")
    page = here / "report" / "index.html"
    if not page.is_file() or other(file).parent.name not in page.read_text():
        return Result(WRONG, f"the neighbor is not on the page: {ended}")
    same = tables(here / "report") == tables(made / "report-here")
    if run in ended.err:
        return Result(HELD if same else REFUSED, ended.err)
    return HELD_WELL if same else Result(WRONG, f"other tables, and {run} is not named: {ended}")


def tables(folder: Path) -> dict[str, bytes]:
    """The tables of a report."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.csv"))}


def plan(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """The list of runs: it changes nothing."""
    before = snapshot(here)
    ended = rgpo_run([*words, "plan=true"], here)
    if found := fault(ended):
        return found
    if snapshot(here) != before:
        return Result(WRONG, "plan=true changed files")
    return HELD_WELL if ended.code == 0 else refused(ended)


@functools.cache
def combinations(shared: Path, config: str, half: bool, seed: float) -> list[tuple[str, str]]:
    """Every file of the run with every damage, in an order that the seed decides."""
    run = the_run(template(shared, config, half) / "here" / "results")
    found = [(file, damage) for file in files(run) for damage in DAMAGES]
    random.Random(f"{seed} {config}").shuffle(found)
    return found


Check = Callable[[Case, Path, Path, Path, list[str]], Result]


def damaged(config: str, half: bool, check: Check, case: Case) -> Result:
    """Damage one file, and now and then a second one, in a copy of the template."""
    made = template(case.shared, config, half)
    chosen = combinations(case.shared, config, half, 0)
    file, damage = chosen[case.number % len(chosen)]
    here = case.folder / "here"
    shutil.copytree(made / "here", here, symlinks=True)
    target = the_run(here / "results") / file
    before = target.read_bytes()
    DAMAGES[damage](target, case.rng)
    what = f"{file} {damage}"
    if target.is_file() and not target.is_symlink() and target.read_bytes() == before:
        return Result(HELD, f"{what}: no damage")
    result = check(case, here, target, made, store.words(case.shared, config))
    return result._replace(detail=f"{what}: {result.detail}")


KINDS = [
    Kind("damage of a finished run, repeated", partial(damaged, "ppo", False, run_again), full=112, share=8),
    Kind("damage of a half-finished run, repeated", partial(damaged, "ppo", True, run_again), full=176, share=10),
    Kind("damage of a finished run, report", partial(damaged, "ppo", False, report), full=112, share=10),
    Kind("damage of a half-finished run, report", partial(damaged, "ppo", True, report), full=176, share=10),
    Kind("damage of a finished run, plan", partial(damaged, "ppo", False, plan), full=112, share=4),
    Kind("damage of a half-finished run, plan", partial(damaged, "ppo", True, plan), full=112, share=4),
    Kind("damage of a language run, repeated", partial(damaged, "language", False, run_again), full=32),
    Kind("damage of a language run, report", partial(damaged, "language", False, report), full=64),
    Kind("damage of a half-finished language run, repeated", partial(damaged, "language", True, run_again), full=48),
]
