"""The driver: a few worker processes, a deadline for each case, and the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import commands, configs, damage, disks, flips, folders, hostile, kills
from .outcomes import BROKEN, HANG, HELD, TRACEBACK, Case, Finished, Kind, Result, failures, table

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS))  # the tests' own helpers
KINDS = [kind for module in (kills, damage, flips, disks, folders, hostile, configs) for kind in module.KINDS]
MOST_LISTED = 100
Work = tuple[int, int]  # index of the kind, number of the case


class Worker(NamedTuple):
    """A worker process, its pipe, and what it is doing since when."""

    process: multiprocessing.Process
    pipe: Connection
    work: Work | None = None
    since: float = 0.0


def main() -> int:
    """Run the campaign; exit code 1 if a case misses its goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", action="store_true", help="the small number of cases that `make test` runs")
    parser.add_argument("--only", action="append", metavar="KIND", help="a kind, or the beginning of the names of several")
    parser.add_argument("--case", type=int, help="one case, with the output of its commands")
    parser.add_argument("--cases", type=int, help="this many cases of each kind")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the table to this file, and the cases to one beside it ending in .json")
    chosen = parser.parse_args()
    kinds = [kind for kind in KINDS if not chosen.only or kind.name.startswith(tuple(chosen.only))]
    if not kinds:
        parser.error(f"no such kind; choose from {', '.join(kind.name for kind in KINDS)}")
    work = list(_work(kinds, chosen))
    start = time.monotonic()
    finished = run(work, chosen.seed, 1 if chosen.case is not None else chosen.processes)
    text = _page(finished, chosen.seed, time.monotonic() - start)
    print(f"\n{text}")
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text)
        cases = [[case.kind.name, case.number, *case.result, round(case.seconds, 2)] for case in finished]
        chosen.out.with_suffix(".json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    return int(bool(failures(finished, chosen.seed)) or len(finished) < len(work))


def _work(kinds: list[Kind], chosen: argparse.Namespace) -> Iterator[Work]:
    for kind in kinds:
        count = chosen.cases if chosen.cases is not None else kind.share if chosen.share else kind.full
        numbers = [chosen.case] if chosen.case is not None else range(count)
        if chosen.case is not None:
            os.environ["CAMPAIGN_SHOWS"] = "1"
        yield from ((KINDS.index(kind), number) for number in numbers)


def run(work: list[Work], seed: int, num_processes: int) -> list[Finished]:
    """Run all cases, in order of kind and number in the result; a worker that dies or hangs costs its one case."""
    commands.adopt_orphans()
    shared = Path(tempfile.mkdtemp(prefix="campaign-"))
    finished: list[Finished] = []
    try:
        commands.warm_up()
        left = list(reversed(work))
        workers = [_start(shared, seed) for _ in range(min(num_processes, len(work)))]
        while workers:
            for worker in list(workers):
                place = workers.index(worker)
                ended = _result(worker)
                if ended is None:
                    continue
                if worker.work is not None:
                    finished.append(Finished(KINDS[worker.work[0]], worker.work[1], *ended))
                    _show(finished, len(work))
                if not worker.process.is_alive():
                    worker = _start(shared, seed)
                if not left:
                    worker.process.kill()
                    del workers[place]
                    continue
                workers[place] = worker._replace(work=left.pop(), since=time.monotonic())
                worker.pipe.send(workers[place].work)
            wait([worker.pipe for worker in workers], timeout=0.5)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        commands.kill_descendants()
        shutil.rmtree(shared, ignore_errors=True)
    order = {item: place for place, item in enumerate(work)}
    return sorted(finished, key=lambda case: order[KINDS.index(case.kind), case.number])


def _result(worker: Worker) -> tuple[Result, float] | None:
    """The result of the worker's case and its CPU time; None while it works."""
    if worker.work is None:
        return Result(BROKEN), 0.0  # nobody counts it: the worker has just started
    if worker.pipe.poll():
        with contextlib.suppress(EOFError, ConnectionError):
            result, seconds = worker.pipe.recv()
            return result, seconds
    if not worker.process.is_alive():
        return Result(TRACEBACK, f"the process that read the files ended with {worker.process.exitcode}"), 0.0
    if time.monotonic() - worker.since > KINDS[worker.work[0]].timeout_s:
        worker.process.kill()
        worker.process.join()
        return Result(HANG, f"not done after {KINDS[worker.work[0]].timeout_s:.0f} s"), 0.0
    return None


def _start(shared: Path, seed: int) -> Worker:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs, shared, seed), daemon=False)
    process.start()
    theirs.close()
    return Worker(process, ours)


def _serve(pipe: Connection, shared: Path, seed: int) -> None:
    """Run cases until killed."""
    commands.adopt_orphans()
    while True:
        index, number = pipe.recv()
        kind = KINDS[index]
        folder, before = Path(tempfile.mkdtemp(prefix="case-", dir=shared)), _cpu_seconds()
        try:
            result = kind.run(Case(number, random.Random(f"{seed}/{kind.name}/{number}"), folder, shared))
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            result = Result(BROKEN, f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})")
        commands.kill_descendants()
        subprocess.run(["rm", "-rf", folder], check=False)
        pipe.send((result, _cpu_seconds() - before))


def _cpu_seconds() -> float:
    """CPU time of this process and of those below it that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _show(finished: list[Finished], total: int) -> None:
    case = finished[-1]
    if case.kind.failed(case.result):
        print(f"{case.result.outcome}: {case.kind.name}, case {case.number}: {case.result.detail}", flush=True)
    elif len(finished) % 50 == 0:
        print(f"{len(finished):,} of {total:,} cases", flush=True)


def _page(finished: list[Finished], seed: int, seconds: float) -> str:
    git = ["git", "-C", str(TESTS), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    minutes, rest = divmod(round(seconds), 60)
    killed = [case for case in finished if case.kind.must_hold]
    facts = f"Seed {seed}, commit {commit}, {datetime.now(UTC):%Y-%m-%d}, {minutes} min {rest} s on {os.cpu_count()} cores."
    held = sum(case.result.outcome == HELD for case in killed)
    equal = f"Kills after which the repeated run equals the uninterrupted one: {held} of {len(killed)}."
    bad = failures(finished, seed)
    listed = ["", f"{len(bad)} cases miss their goal:", "", *(f"- {line}" for line in bad[:MOST_LISTED])] if bad else []
    return "\n".join(["# Campaign of faults", "", facts, equal, "", table(finished), *listed, ""])


if __name__ == "__main__":
    sys.exit(main())
