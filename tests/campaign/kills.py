"""Runs that are killed, at random moments and at each disk operation, and then repeated until they are done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import operations, store
from .commands import Ended, fault, finish, kill_descendants, refused, rgpo_report, rgpo_run, start
from .compare import equal
from .outcomes import HANG, WRONG, Case, Kind, Result

MOST_REPEATS = 3
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def control(case: Case) -> str:
    """A configuration of control tasks without TRPO."""
    return case.rng.choice(("ppo", "rgpo", "a2c"))


def repeated(case: Case, config: str, cwd: Path) -> Result:
    """Repeat the command until it is done, and compare with the uninterrupted run."""
    whole = store.whole(case.shared, config)
    for _ in range(MOST_REPEATS):
        ended = rgpo_run(store.words(case.shared, config), cwd, env=store.env(case.shared, config), patience_s=300)
        if found := fault(ended):
            return found
        if ended.code == 0:
            return equal(cwd / "results", whole.results)
        if ended.code == 2:
            return refused(ended)
    return Result(WRONG, f"not done after {MOST_REPEATS} repeats: {ended}")


def killed(case: Case, config: str, first: Callable[[], None] | None, meanwhile: Callable[[int], None] | None) -> Result:
    """Run with one kill, read the folder with the report now and then, and repeat."""
    cwd = case.folder / "here"
    cwd.mkdir(exist_ok=True)
    words, env = store.words(case.shared, config), store.env(case.shared, config)
    ended = rgpo_run(words, cwd, env=env, first=first, meanwhile=meanwhile, patience_s=300)
    if found := improper(ended):
        return found
    if case.rng.random() < 0.25 and (found := fault(rgpo_report((), cwd))):
        return found
    return repeated(case, config, cwd)


def improper(ended: Ended) -> Result | None:
    """The result of a killed command that did not stop as it should; None if it did, or was done before."""
    return None if ended.code in (-9, 9, -15) else fault(ended)


def at_a_moment(configs: Callable[[Case], str], case: Case) -> Result:
    """A signal, or two, at a random moment."""
    config = configs(case)
    seconds = store.whole(case.shared, config).seconds
    number = case.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, "twice SIGINT"))
    moment, again = case.rng.uniform(0, 1.1) * seconds, case.rng.choice((0.0, 0.05, 1.1))

    def kill(pid: int) -> None:
        time.sleep(moment)
        if number == "twice SIGINT":
            send(pid, signal.SIGINT)
            time.sleep(again)
        send(pid, signal.SIGINT if number == "twice SIGINT" else signal.Signals(number))

    return killed(case, config, None, kill)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process unless it has ended; a launcher's workers get it as well, as from a terminal."""
    try:
        (os.kill if number == signal.SIGTERM else os.killpg)(pid, number)
    except ProcessLookupError:
        return


def at_an_operation(configs: Callable[[Case], str], case: Case) -> Result:
    """Death, a signal or a power cut at a disk operation; the case's number decides which operation."""
    config = configs(case)
    folder = case.folder / "here" / "results"
    total = store.whole(case.shared, config).operations
    k = 1 + (case.number * 7 + case.rng.randrange(7)) % total
    number = case.rng.choice((signal.SIGTERM, signal.SIGINT))
    first = case.rng.choice(
        (operations.dying(folder, k),) * 3
        + (operations.signaled(folder, k, number, 1), operations.signaled(folder, k, signal.SIGINT, 2)),
    )
    return killed(case, config, first, None)


def power_cut(configs: Callable[[Case], str], case: Case) -> Result:
    """Death at a disk operation, after which what was not synced is lost."""
    config = configs(case)
    k = 1 + case.rng.randrange(store.whole(case.shared, config).operations)
    folder = case.folder / "here" / "results"
    return killed(case, config, operations.losing_power(folder, case.folder / "graveyard", k, case.rng), None)


def several_times(case: Case) -> Result:
    """Up to four deaths at disk operations of one run after the other."""
    config, cwd = control(case), case.folder / "here"
    cwd.mkdir()
    total = store.whole(case.shared, config).operations
    for _ in range(case.rng.randint(2, 4)):
        first = operations.dying(cwd / "results", 1 + case.rng.randrange(max(total // 2, 1)))
        if found := improper(rgpo_run(store.words(case.shared, config), cwd, first=first)):
            return found
    return repeated(case, config, cwd)


def two_at_once(case: Case) -> Result:
    """The same command twice at about the same time; one of the two processes is killed, or none."""
    from rgpo.cli.run import main

    config, cwd = case.rng.choice(("ppo", "sweep")), case.folder / "here"
    cwd.mkdir()
    words, seconds = ("rgpo-run", *store.words(case.shared, config)), store.whole(case.shared, config).seconds
    k = case.rng.choice((10**6, 1 + case.rng.randrange(store.whole(case.shared, config).operations)))
    one = start(main, words, cwd, first=operations.dying(cwd / "results", k))
    time.sleep(case.rng.uniform(0, 0.6) * seconds)
    other = start(main, words, cwd)
    for started in (one, other):
        if found := improper(finish(started, 300)):
            return found
    return repeated(case, config, cwd)


def new_process(case: Case) -> Result:
    """A signal to a new process that still imports, or soon after."""
    config, cwd = control(case), case.folder / "here"
    cwd.mkdir()
    words = store.words(case.shared, config)
    number = case.rng.choice((signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL))
    script = "import sys; from rgpo.cli.run import main; sys.exit(main())"
    if (installed := Path(sys.executable).with_name("rgpo-run")).exists():
        script = installed.read_text()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(case.rng.uniform(0.3, 4.0))
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return Result(HANG, f"a new process did not end: {Ended(tuple(words), None, out, err)}")
    kill_descendants()
    ended = Ended(("rgpo-run", *words), process.returncode, out, err)
    if found := improper(ended):
        return found
    if ended.code not in (0, STOPS[number]):
        return Result(WRONG, f"{number.name} ended with {ended}")
    return repeated(case, config, cwd)


def always(config: str) -> Callable[[Case], str]:
    """One configuration for all cases."""
    return lambda case: config


KINDS = [
    Kind("kill at a random moment: control", partial(at_a_moment, control), full=60, share=3, must_hold=True),
    Kind("kill at a disk operation: control", partial(at_an_operation, control), full=110, share=8, must_hold=True),
    Kind("kills at several disk operations: control", several_times, full=20, share=1, must_hold=True),
    Kind("power cut at a disk operation: control", partial(power_cut, control), full=50, share=5),
    Kind("kill of one of two equal commands", two_at_once, full=20, share=1, must_hold=True),
    Kind("kill of a new process: control", new_process, full=15, share=1, must_hold=True),
    Kind("kill at a random moment: TRPO", partial(at_a_moment, always("trpo")), full=15, must_hold=True),
    Kind("kill at a disk operation: TRPO", partial(at_an_operation, always("trpo")), full=15, share=1, must_hold=True),
    Kind("kill at a random moment: language", partial(at_a_moment, always("language")), full=12, must_hold=True),
    Kind("kill at a disk operation: language", partial(at_an_operation, always("language")), full=16, share=1, must_hold=True),
    Kind("kill at a random moment: sweep", partial(at_a_moment, always("sweep")), full=12, share=1, must_hold=True),
    Kind("kill at a disk operation: sweep", partial(at_an_operation, always("sweep")), full=12, must_hold=True),
    Kind("kill at a random moment: joblib", partial(at_a_moment, always("joblib")), full=4, must_hold=True),
    Kind("kill while compiling", partial(at_a_moment, always("compiled")), full=4, must_hold=True, timeout_s=900),
]
