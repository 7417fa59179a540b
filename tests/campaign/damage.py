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

from . import operations, store
from .commands import command, fault, refused, rgpo_report, rgpo_run
from .compare import equal, iterations
from .corruptions import DAMAGES, other, the_run
from .outcomes import HELD, HELD_WELL, REFUSED, WRONG, Case, Kind, Result

NEIGHBOR = "seed=2"  # a healthy run beside the damaged one
WITHOUT_DIGEST = (".lock", "state.json")


def template(shared: Path, config: str, half: bool) -> Path:
    """A folder with results/ that holds a finished or half-finished run, and its finished neighbor."""

    def make(folder: Path) -> None:
        words = store.words(shared, config)
        whole = store.whole(shared, config)
        first = operations.dying(folder / "here" / "results", round(whole.operations * 0.6)) if half else None
        (folder / "here").mkdir()
        rgpo_run(words, folder / "here", first=first)
        ended = rgpo_run([*words, NEIGHBOR], folder / "here")
        assert ended.code == 0, ended
        shutil.copytree(folder / "here", folder / "expected", symlinks=True)
        if half:
            ended = rgpo_run(words, folder / "expected")
            assert ended.code == 0, ended
        for name in ("here", "expected"):
            ended = rgpo_report((), folder / name)
            assert ended.code is not None and (folder / name / "report").is_dir(), ended
            (folder / name / "report").rename(folder / f"report-{name}")

    return store.once(shared, f"template-{config}-{'half' if half else 'finished'}", make)


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
    if not expected.exists() or file.name == ".lock" or unmarked(file):
        return True
    if file.is_symlink() or not file.is_file():
        return False
    if file.suffix == ".json":
        try:
            return bool(json.loads(file.read_text("utf-8-sig")).keys() == json.loads(expected.read_text()).keys())
        except (ValueError, AttributeError):
            return False
    if file.suffix == ".parquet":
        return True  # compared before
    return file.read_bytes() == expected.read_bytes() or file.suffix == ".pt"


def unmarked(file: Path) -> bool:
    """True if a file is a manifest that was deleted, as if an earlier version had finished the run."""
    return file.name == "manifest.json" and not os.path.lexists(file)


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


def verify(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """`rgpo-report verify`: every damage of a file that has a digest is named, and nothing is changed."""
    from rgpo.report.cli import main

    before = snapshot(here)
    ended = command(main, ("rgpo-report", "verify"), here)
    if found := fault(ended):
        return found
    if snapshot(here) != before:
        return Result(WRONG, "verify changed files")
    if file.name in ended.text:
        return Result(REFUSED, ended.err) if ended.code == 1 else Result(WRONG, f"damage is named with exit code {ended.code}")
    return HELD_WELL if file.name in WITHOUT_DIGEST or unmarked(file) else Result(WRONG, f"the damage is not named: {ended}")


@functools.cache
def combinations(shared: Path, config: str, half: bool) -> list[tuple[str, str]]:
    """Every file of the run with every damage, in an order that is the same in every campaign."""
    run = the_run(template(shared, config, half) / "here" / "results")
    found = [(file, damage) for file in files(run) for damage in DAMAGES]
    random.Random(f"0 {config}").shuffle(found)
    return found


Check = Callable[[Case, Path, Path, Path, list[str]], Result]


def killed_and_damaged(case: Case) -> Result:
    """Death at a disk operation and damage of one file of what it leaves, then the same command until it is done."""
    here, words = case.folder / "here", store.words(case.shared, "ppo")
    here.mkdir()
    whole = store.whole(case.shared, "ppo")
    k = 1 + case.rng.randrange(whole.operations)
    rgpo_run(words, here, first=operations.dying(here / "results", k))
    rgpo_run([*words, NEIGHBOR], here)
    run = next((path for path in (here / "results").glob("*/*-s1-*")), here)
    names = [name for name in files(run) if (run / name).stat().st_size and "-s2-" not in name]
    what = "nothing to damage"
    if names:
        name, damage = case.rng.choice(names), case.rng.choice(sorted(DAMAGES))
        DAMAGES[damage](run / name, case.rng)
        what = f"killed before operation {k}, {name} {damage}"
    ended = rgpo_run(words, here)
    result = fault(ended) or (refused(ended) if ended.code in (1, 2) else equal(here / "results", made_of(case)))
    return result._replace(detail=f"{what}: {result.detail}")


def made_of(case: Case) -> Path:
    """The finished run and its neighbor."""
    return template(case.shared, "ppo", False) / "expected" / "results"


def damaged(config: str, half: bool, check: Check, case: Case) -> Result:
    """Damage one file in a copy of the template."""
    made = template(case.shared, config, half)
    chosen = combinations(case.shared, config, half)
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
    Kind("damage of a half-finished run, repeated", partial(damaged, "ppo", True, run_again), full=128, share=10),
    Kind("damage of a finished run, report", partial(damaged, "ppo", False, report), full=112, share=10),
    Kind("damage of a half-finished run, report", partial(damaged, "ppo", True, report), full=176, share=10),
    Kind("damage of a finished run, plan", partial(damaged, "ppo", False, plan), full=48, share=4),
    Kind("damage of a half-finished run, plan", partial(damaged, "ppo", True, plan), full=48, share=4),
    Kind("damage of a finished run, verify", partial(damaged, "ppo", False, verify), full=112, share=4),
    Kind("kill and damage", killed_and_damaged, full=32, share=2),
    Kind("damage of a language run, repeated", partial(damaged, "language", False, run_again), full=16),
    Kind("damage of a language run, report", partial(damaged, "language", False, report), full=64),
    Kind("damage of a half-finished language run, repeated", partial(damaged, "language", True, run_again), full=12),
]
