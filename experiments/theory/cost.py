"""C5: processor time and memory of one update of every algorithm, at equal batch.

Time is the process's CPU time on one thread, which other work on the machine hardly disturbs, in interleaved rounds. Memory is
the peak of the resident set above what it was before the update, each in a forked process of its own (Linux only).
"""

from __future__ import annotations

import ctypes
import io
import math
import multiprocessing
import time
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.theory.batch import load_batch
from experiments.theory.common import CONFIDENCE, UNDECIDED, Tables, Verdict, algorithms, judge, load, start
from rgpo.learning.loss import standardize
from rgpo.learning.types import Batch, Policy, State
from rgpo.report.figures import style
from rgpo.report.stats.independent import student, summarize

COMMAND = "python -m experiments.theory cost"
BASELINE = "ppo"
ROW = 0.15  # inches of an algorithm in the figure
TOLERANCE = 1.1  # of PPO's time
TASKS = {"control": "hopper", "language": "qwen_rlhf"}
SMALL = ["ppo", "rgpo", "rgpo_literal", "trpo"]
SHORT = ("update.num_epochs=1", "update.critic_epochs=1")  # of SGD, and of the natural gradient
NUM_ROUNDS = 11
Update = Callable[[], object]
Fresh = Callable[[], Update]  # makes an update that has not run yet


def measure(smoke: bool) -> dict[str, pd.DataFrame]:
    """time (one row per task, algorithm and round, CPU-s), memory (per task and algorithm, MiB); smoke: four on control."""
    times, memory = [], []
    for task in ("control",) if smoke else ("control", "language"):  # language needs the embedded model
        names, num_rounds = (SMALL, 1) if smoke else (algorithms(TASKS[task]), NUM_ROUNDS)
        prepare = prepare_control if task == "control" else prepare_language
        ready: dict[str, Fresh] = {}
        for name in names:
            with redirect_stdout(io.StringIO()) if ready else nullcontext():  # each prints what it loads; once is enough
                ready[name] = prepare(name, *([SHORT[name == "trpo"]] if smoke else []))
        memory += [(task, name, peak_memory(ready[name])) for name in names]
        ready[BASELINE]()()  # warms up
        for round_ in range(num_rounds):
            for name in names:
                update = ready[name]()
                start = time.process_time()
                update()
                times.append((task, name, round_, time.process_time() - start))
    return {
        "time": pd.DataFrame(times, columns=["task", "algo", "round", "cpu_s"]),
        "memory": pd.DataFrame(memory, columns=["task", "algo", "peak_mib"]),
    }


def prepare_control(name: str, *words: str) -> Fresh:
    """Updates of PPO's published length (10 epochs of 32 minibatches) on the fixed Hopper batch."""
    policy, batch = load_batch()
    return partial(_fresh, (f"task={TASKS['control']}", f"algo={name}", *words), policy, policy.state_dict(), batch)


def prepare_language(name: str, *words: str) -> Fresh:
    """Updates of the embedded language model on one rollout, the same completions for every algorithm."""
    words = (f"task={TASKS['language']}", f"algo={name}", *words)
    task, algorithm = load(*words)
    policy = start(task, algorithm, 1, 0)
    rollout = task.collect(policy)
    batch = policy.make_batch(rollout, *algorithm.advantage(rollout))
    if algorithm.advantage.normalize == "batch":
        batch = batch.with_advantage(standardize(batch.samples.advantage))
    return partial(_fresh, words, policy, policy.state_dict(), batch)


def _fresh(words: tuple[str, ...], policy: Policy, state: State, batch: Batch) -> Update:
    """One update from the parameters of state with a new optimizer."""
    _, algorithm = load(*words)
    policy.load_state_dict(state)
    algorithm.setup(policy, 1, 0)
    return partial(algorithm.update, policy, batch, algorithm.penalty.loss_coef)


def peak_memory(make: Fresh) -> float:
    """Largest resident set while one update runs, above the one before it, in MiB; NaN where the system does not report it."""
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        make()()  # so that what is loaded or compiled once does not count
        update = make()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = _resident("VmRSS")
        update()
        sender.send(_resident("VmHWM") - before)

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    except EOFError:
        raise RuntimeError("the forked process that measures memory died") from None
    finally:
        process.join()


def _resident(key: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def relative(tables: Tables, task: str, name: str) -> tuple[float, float, float]:
    """CPU time over the baseline's of the same round: geometric mean and its interval, as the ledger has them."""
    table = tables["time"][tables["time"].task == task].pivot(index="round", columns="algo", values="cpu_s")
    found = student(summarize(np.log((table[name] / table[BASELINE]).to_numpy(float))), CONFIDENCE)
    return float(np.exp(found.value)), float(np.exp(found.low)), float(np.exp(found.high))


def at_most(limit: float, found: tuple[float, float, float]) -> str:
    """The verdict on a number that should not exceed a limit, from its interval."""
    _, low, high = found
    return UNDECIDED if low <= limit < high else judge(high <= limit)


def verdicts(tables: Tables) -> list[Verdict]:
    rows = []
    rule = (
        f"reproduced if the CPU time of one update is at most {TOLERANCE:g} of PPO's at equal batch and epochs "
        "(geometric mean of rounds)"
    )
    for task in tables["time"].task.unique():
        num = int(tables["time"]["round"].nunique())
        for name in ("rgpo_literal", "rgpo"):
            found = relative(tables, task, name)
            where = f"{name} / ppo, {task} (ratio of CPU time)"
            rows.append(Verdict("C5", where, *found, num, "PPO's cost", at_most(TOLERANCE, found), rule, COMMAND))
        if "trpo" in set(tables["time"].algo[tables["time"].task == task]):
            found = relative(tables, task, "trpo")
            rule_trpo = "reproduced if TRPO's update takes longer than PPO's: the second-order step that RGPO is meant to save"
            where = f"trpo / ppo, {task} (ratio of CPU time)"
            rows.append(Verdict("C5 (ours)", where, *found, num, "not stated", judge(found[1] > 1), rule_trpo, COMMAND))
    return rows


def numbers(tables: Tables) -> dict[str, object]:
    memory = tables["memory"].set_index(["task", "algo"]).peak_mib
    median = tables["time"].groupby(["task", "algo"]).cpu_s.median()
    rows = [
        {"task": task, "algo": name, "cpu_s": float(median[task, name]), "mib": float(memory[task, name])}
        | {"relative": relative(tables, task, name)}
        for task, name in median.index
    ]
    trpo = [
        {"task": task, "time": relative(tables, task, "trpo")[0], "memory": float(memory[task, "trpo"] / memory[task, BASELINE])}
        for task in tables["time"].task.unique()
    ]
    tasks = list(tables["time"].task.unique())
    penalty = {task: relative(tables, task, "rgpo")[0] / relative(tables, task, "rgpo_literal")[0] - 1 for task in tasks}
    return {"rows": rows, "trpo": trpo, "penalty": penalty, "rounds": int(tables["time"]["round"].nunique())}


def draw(tables: Tables) -> Figure:
    """CPU time of one update relative to PPO's, a dot per round; and peak memory."""
    tasks = list(tables["time"].task.unique())
    most = max(tables["time"][tables["time"].task == task].algo.nunique() for task in tasks)
    figure, axes = style.grid(2 * len(tasks), columns=2, height=max(2.4, ROW * most + 0.7))
    for i, task in enumerate(tasks):
        table = tables["time"][tables["time"].task == task].pivot(index="round", columns="algo", values="cpu_s")
        order = table.median().sort_values().index
        memory = tables["memory"][tables["memory"].task == task].set_index("algo").peak_mib
        for y, name in enumerate(order):
            color = style.KNOWN[name].color if name in style.KNOWN else style.GRAY
            axes[2 * i].plot(table[name] / table[BASELINE], np.full(len(table), y), "o", color=color, markersize=3, alpha=0.7)
            axes[2 * i + 1].barh(y, memory[name], color=color, height=0.6)
        for panel in axes[2 * i : 2 * i + 2]:
            panel.set_yticks(range(len(order)), order)
            panel.set_xlim(left=0)
        axes[2 * i].axvline(1, color=style.GRAY, linewidth=0.6)
        axes[2 * i].set(xlabel="CPU time of one update over PPO's", title=task)
        axes[2 * i + 1].set(xlabel="peak memory of one update  [MiB]", title=task)
    return figure
