"""Folders with odd names, and whether the commands that rgpo-run prints and records work in bash as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

from . import store
from .commands import Ended, fault, refused, rgpo_report, rgpo_run
from .compare import columns
from .outcomes import HELD_WELL, WRONG, Case, Kind, Result

NAMES = [
    "plain",
    "two words",
    " leading and trailing ",
    "it's",
    'a "quoted" one',
    "new\nline",
    "tab\there",
    "a=b",
    "=",
    "$HOME",
    "${HOME}",
    "$(touch PWNED)",
    "`touch PWNED`",
    "; touch PWNED",
    "a,b",
    "[1,2]",
    "{a:b}",
    "(x)",
    "%s%d{}",
    "${oc.env:HOME}",
    "???",
    "*",
    "a\\b",
    "\\",
    "#comment",
    "!history",
    "~",
    "~nosuchuser",
    "-m",
    "--help",
    "-rf",
    "null",
    "true",
    "1e3",
    "2026-01-01",
    "\u00fcml\u00e4ut \u6587\u5b57 \U0001f600",
    "\u202eright to left",
    "escape \x1b[31m",
    os.fsdecode(b"not utf-8 \xff"),
    "n" * 200,
    "deep/er/and deeper/still",
    "a&b|c>d<e",
    "$x_1$ math",
    "<b>bold</b>",
    "..hidden",
    "a:b@c",
]
HINT = re.compile(r"`(rgpo-report [^`]*results_dir=.*?experiment=[\w.-]+)`", re.DOTALL)
SHIM = "rgpo-run() { printf '%s\\0' rgpo-run \"$@\"; }; rgpo-report() { printf '%s\\0' rgpo-report \"$@\"; }; "


def in_bash(line: str, cwd: Path) -> list[str]:
    """The words that bash makes of a line, whose command is not run."""
    shell = subprocess.run(["bash", "-c", SHIM + line], cwd=cwd, capture_output=True, check=False, timeout=20)
    return [os.fsdecode(word) for word in shell.stdout.split(b"\0")[:-1]]


def odd_place(case: Case, role: str) -> Result:
    """Run in or with the folder, run again as recorded, and report as printed."""
    name = NAMES[(case.number + 13 * ROLES.index(role)) % len(NAMES)]
    cwd = case.folder / "here" / (name if role == "current directory" else "cwd")
    cwd.mkdir(parents=True)
    words, config_dir = list(store.words(case.shared, "ppo")), ()
    results = cwd / "results"
    if role in ("results_dir", "link as results_dir"):
        words.append(f"results_dir={name}" if case.rng.random() < 0.5 else f"results_dir=./{name}")
        results = cwd / name
    if role == "link as results_dir":
        (case.folder / "real").mkdir()
        results.parent.mkdir(parents=True, exist_ok=True)
        results.symlink_to(case.folder / "real")
    if role == "--config-dir":
        (cwd / name / "gate").mkdir(parents=True)
        shutil.copy(conf() / "gate" / "clip.yaml", cwd / name / "gate" / "mine.yaml")
        words.append("gate=mine")
        config_dir = (f"--config-dir={name}",) if case.rng.random() < 0.5 else ("--config-dir", name)
    env = {"HOME": str(case.folder)}
    ended = rgpo_run([*config_dir, *words], cwd, env=env)
    result = judged(case, ended, cwd, results if role != "results_dir" else found(case, cwd, results), env)
    pwned = [path for path in case.folder.rglob("PWNED") if path.is_file()]
    return Result(WRONG, f"{name!r}: a command in the name was executed") if pwned else name_in(result, name, role)


def name_in(result: Result, name: str, role: str) -> Result:
    return result._replace(detail=f"{role} {name!r}: {result.detail}")


def conf() -> Path:
    from rgpo.paths import conf_dir

    return conf_dir()


def found(case: Case, cwd: Path, results: Path) -> Path:
    """The results folder, also if its ~ was expanded."""
    expanded = case.folder / results.name[2:] if results.name.startswith("~/") else case.folder
    return results if results.is_dir() or results.name != "~" else expanded


def judged(case: Case, ended: Ended, cwd: Path, results: Path, env: dict[str, str]) -> Result:
    """The rows of a run that should have been done, and its printed and recorded commands."""
    if problem := fault(ended):
        return problem
    if ended.code in (1, 2):
        return refused(ended)
    runs = [path.parent for path in results.glob("*/*/metrics.parquet")]
    if ended.code != 0 or len(runs) != 1:
        return Result(WRONG, f"{len(runs)} runs in it: {ended}")
    expected = columns(next(store.whole(case.shared, "ppo").results.glob("*/*/metrics.parquet")))
    rows = columns(runs[0] / "metrics.parquet")
    unequal = [name for name in expected if name not in ("run_id", "config_hash", "gate") and rows.get(name) != expected[name]]
    if unequal:
        return Result(WRONG, f"other values of {', '.join(unequal[:5])}")
    recorded = json.loads((runs[0] / "provenance.json").read_text())["command"]
    again = rgpo_run(in_bash(recorded, cwd)[1:], cwd, env=env)
    if again.code != 0 or "already complete" not in again.out:
        return fault(again) or Result(WRONG, f"the recorded command {recorded!r} does not find the run: {again}")
    hint = HINT.search(ended.out)
    if hint is None:
        return Result(WRONG, f"no command for the report was printed: {ended.out[-300:]!r}")
    shown = rgpo_report(in_bash(hint[1], cwd)[1:], cwd, env=env)
    if shown.code != 0 or "1 runs" not in shown.out:
        return fault(shown) or Result(WRONG, f"the printed command {hint[1]!r} does not work: {shown}")
    return HELD_WELL


def odd_out(case: Case) -> Result:
    """The report's out= in an odd folder."""
    name = NAMES[case.number % len(NAMES)]
    cwd = case.folder / "here"
    shutil.copytree(store.whole(case.shared, "ppo").results, cwd / "results")
    ended = rgpo_report([f"out={name}"], cwd, env={"HOME": str(case.folder)})
    if problem := fault(ended):
        return name_in(problem, name, "out")
    if ended.code == 2:
        return name_in(refused(ended), name, "out")
    pages = list(case.folder.rglob("index.html"))
    return HELD_WELL if ended.code == 0 and len(pages) == 1 else Result(WRONG, f"out={name!r}: {len(pages)} pages: {ended}")


ROLES = ("results_dir", "current directory", "--config-dir", "link as results_dir")
KINDS = [
    Kind(f"odd folder: {role}", partial(odd_place, role=role), full=len(NAMES) if i == 0 else 28, share=3)
    for i, role in enumerate(ROLES)
]
KINDS += [Kind("odd folder: out of the report", odd_out, full=len(NAMES), share=3)]
