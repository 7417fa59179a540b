"""Results folders made to harm whoever reads them: the report, the list of runs, the same command, and rgpo.load."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from . import store
from .commands import command, fault, rgpo_report, rgpo_run
from .compare import equal
from .corruptions import other, the_run
from .damage import Check, plan, report, run_again, snapshot, template
from .harms import HARM, MATH, SHOWS, odd_value, raw_text, target
from .outcomes import HELD, HELD_WELL, REFUSED, WRONG, Case, Kind, Result


def harmed(check: Check, half: bool, case: Case) -> Result:
    """Harm one file, now and then also remove the manifest that would show it, and check as for damage."""
    made, here = template(case.shared, "ppo", half), case.folder / "here"
    shutil.copytree(made / "here", here, symlinks=True)
    run = the_run(here / "results")
    harm = case.rng.choice([raw_text, odd_value, target] if half else HARM)
    what = harm(run, case.rng)
    file = run / what.split(",")[0].split(" ")[0]
    if not half and case.rng.random() < 0.4 and file.name != "manifest.json":
        (run / "manifest.json").unlink(missing_ok=True)
        what += ", no manifest"
    result = check(case, here, file, made, store.words(case.shared, "ppo"))
    if next(case.folder.rglob("PWNED"), None):
        result = Result(WRONG, "a function that a file names was called")
    return result._replace(detail=f"{what}: {result.detail}")


def read(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """The report, which may show a table that is damaged in itself as it is, unless a manifest shows the damage."""
    result = report(case, here, file, made, words)
    trusted = not (file.parent / "manifest.json").exists()
    return HELD_WELL if trusted and result.outcome == WRONG and "is not named" in result.detail else result


def again(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """The same command, which trusts a file where no manifest shows that it is wrong."""
    trusted = not (file.parent / "manifest.json").exists()
    result = run_again(case, here, file, made, words)
    return HELD_WELL if trusted and ("other values" in result.detail or "still damaged" in result.detail) else result


def loaded(case: Case, here: Path, file: Path, made: Path, words: list[str]) -> Result:
    """rgpo.load, rgpo.results and everything that a Run has: values or a ConfigError."""
    run = file.parent

    def load() -> int:
        import rgpo
        from rgpo.errors import ConfigError

        code = 0
        for use in (
            lambda r: r.metrics,
            repr,
            lambda r: r.identity,
            lambda r: r.samples,
            lambda r: r.policy,
            lambda r: r.evaluate(1),
        ):
            try:
                use(rgpo.load(run))
            except ConfigError as error:
                print(error)
                code = 2
        try:
            rgpo.results(here / "results")
        except ConfigError as error:
            print(error)
        return code

    before = snapshot(here)
    ended = command(load, ("rgpo.load",), here)
    if ended.code == 2 and not ended.err:
        ended = ended._replace(out="", err=ended.out)
    if problem := fault(ended):
        return problem
    if snapshot(here) != before:
        return Result(WRONG, "loading changed files")
    return Result(HELD if ended.code == 0 else REFUSED, ended.err[-300:])


def planted_links(case: Case) -> Result:
    """Links in a run's folder that point to a file outside, in place of what a resumed run writes: it stays as it is."""
    made, here = template(case.shared, "ppo", case.rng.random() < 0.7), case.folder / "here"
    shutil.copytree(made / "here", here, symlinks=True)
    run = the_run(here / "results")
    outside = case.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    names = [
        "config.yaml",
        "provenance.json",
        "state.json",
        "manifest.json",
        ".lock",
        "error.txt",
        "metrics.parquet",
        "checkpoint.pt",
    ]
    names += [f".{name}.writing" for name in names] + ["checkpoint-previous.pt", "metrics", "samples"]
    for name in case.rng.sample(names, case.rng.choice((1, 1, 2))):
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(
            case.rng.choice((outside / "precious", outside / "absent")) if name not in ("metrics", "samples") else outside
        )
    ended = rgpo_run(store.words(case.shared, "ppo"), here)
    if problem := fault(ended):
        return problem
    if {path.name: path.read_text() for path in outside.iterdir()} != {"precious": "precious"}:
        return Result(WRONG, f"written through a link: {sorted(path.name for path in outside.iterdir())}: {ended}")
    if ended.code == 0:
        return equal(here / "results", made / "expected" / "results")
    return Result(REFUSED, ended.err)


def odd_neighbors(case: Case) -> Result:
    """Runs and experiments with odd names, and odd files among them: the healthy runs are reported."""
    made, here = template(case.shared, "ppo", False), case.folder / "here"
    shutil.copytree(made / "here", here, symlinks=True)
    results, run = here / "results", the_run(here / "results")
    name = case.rng.choice(
        (SHOWS.replace("\x00", ""), MATH.replace("/", "|"), "$x^", "a" * 200, "new\nline", "--option", "<b>", "%s", "\u202e")
    )
    where = case.rng.choice(("experiment", "run", "file", "link", "loop"))
    if where == "experiment":
        shutil.copytree(run.parent, results / name)
    elif where == "run":
        shutil.copytree(run, run.parent / f"{name[:180]}-s1-{run.name[-8:]}")
    elif where == "file":
        (results / name).write_text(name)
        os.mkfifo(run.parent / f"{name[:180]}-s1-0123abcd")
    elif where == "link":
        (results / name).symlink_to("/dev/zero")
    else:
        (results / name).symlink_to(results)
    figures = ["figures=[learning_curves]"] if case.rng.random() < 0.3 else []
    ended = rgpo_report(figures, here)
    if problem := fault(ended):
        return problem._replace(detail=f"{where} {name[:40]!r}: {problem.detail}")
    page = here / "report" / "index.html"
    if not page.is_file() or other(run / "config.yaml").parent.name not in page.read_text():
        return Result(WRONG, f"{where} {name[:40]!r}: a healthy run is not on the page: {ended}")
    return Result(HELD if ended.code == 0 else REFUSED, ended.err[-300:])


KINDS = [
    Kind("hostile files, report", partial(harmed, read, False), full=160, share=10),
    Kind("hostile files of a half-finished run, report", partial(harmed, read, True), full=40),
    Kind("hostile files, plan", partial(harmed, plan, False), full=60, share=4),
    Kind("hostile files, repeated", partial(harmed, again, False), full=60, share=3),
    Kind("hostile files of a half-finished run, repeated", partial(harmed, again, True), full=40, share=2),
    Kind("hostile files, rgpo.load", partial(harmed, loaded, False), full=80, share=4),
    Kind("planted links", planted_links, full=40, share=2),
    Kind("odd names among results, report", odd_neighbors, full=40, share=3),
]
