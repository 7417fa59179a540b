"""The training loop: collect, learn, evaluate, write, checkpoint; interrupted runs are resumed, finished ones skipped."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rgpo import distributed
from rgpo.errors import MAX_LINE, OutOfMemory, is_out_of_memory, printable
from rgpo.learning.algorithm import rows_with_advantage
from rgpo.learning.clock import Clock
from rgpo.learning.types import Algorithm, Metrics, Task
from rgpo.runtime import manifest, run_folder
from rgpo.runtime.metrics import number
from rgpo.runtime.resources import compute_threads, limited_threads
from rgpo.runtime.session import Session
from rgpo.runtime.signals import Interrupted, Signals
from rgpo.runtime.streams import tolerant_output

RATIO_MOVED = 1e-4  # nats; smaller log ratios are rounding errors


def run(config: Mapping[str, object], task: Task, algorithm: Algorithm, run_dir: Path, config_hash: str, command: str) -> str:
    """Run or resume one resolved configuration with its task and algorithm; returns completed, paused, skipped or held.

    Raises: Interrupted after a signal; ConfigError, NonFiniteError, OutOfMemory, StorageError or any error from the task or the
    algorithm. The reason is recorded in state.json.
    """
    with tolerant_output(), _hold(run_dir) as verdict:
        if verdict == "held":
            print(f"{printable(str(run_dir), MAX_LINE)}: {run_folder.holder(run_dir)}, skipped", flush=True)
        elif verdict == "skipped":
            but = "".join(f"; {why}" for why in manifest.problems(run_dir))
            print(f"{printable(str(run_dir), MAX_LINE)}: already complete, skipped (force=true runs it again){but}", flush=True)
        else:
            session = Session(config, task, algorithm, run_dir, config_hash, command)
            num_threads = compute_threads(task, session.settings.num_threads)
            with Signals() as signals, _recorded(session), limited_threads(num_threads):
                session.start()
                if _loop(session, signals):
                    session.write_state("interrupted", f"paused after iteration {session.iteration}")
                    verdict = "paused"
        return "completed" if verdict == "free" else verdict


@contextmanager
def _hold(run_dir: Path) -> Iterator[str]:
    """Rank 0 locks the folder for all processes; yields held (by another process), skipped (already complete) or free."""
    with run_folder.lock(run_dir) if distributed.rank() == 0 else nullcontext(True) as mine:
        complete = mine and distributed.rank() == 0 and run_folder.settle(run_dir)
        yield distributed.all_gather("held" if not mine else "skipped" if complete else "free")[0]


@contextmanager
def _recorded(session: Session) -> Iterator[None]:
    """Record in the run's folder how the run ends, and convert out-of-memory errors to OutOfMemory, which has a remedy."""
    try:
        yield
    except Interrupted:
        session.write_state("interrupted", "stopped by a signal")
        raise
    except KeyboardInterrupt:
        session.write_state("interrupted", "stopped immediately; resumes from the last checkpoint")
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            memory = OutOfMemory(f"out of memory; {session.task.memory_advice}.")
            session.fail(memory)
            raise memory from error
        session.fail(error)
        raise


def _loop(session: Session, signals: Signals) -> bool:
    """Run the remaining iterations, up to pause_at if it is set; returns True if the run is not finished.

    Raises: Interrupted after a signal to any process.
    """
    signals.iterating = True
    end = min(session.num_iterations, session.settings.pause_at or session.num_iterations)
    saved_at = time.monotonic()
    metrics: Metrics = {}
    try:
        while session.iteration < end:
            metrics = iterate(session)
            due = time.monotonic() - saved_at >= session.settings.checkpoint_every_s
            received, due_on = zip(*distributed.all_gather((signals.received or 0, due)), strict=True)
            if any(received):
                session.save()
                raise Interrupted(max(received))
            if due_on[0]:
                session.save()
                saved_at = time.monotonic()
    finally:
        session.recorder.close()
    session.save()
    if session.iteration < session.num_iterations:
        return True
    session.finish(metrics)
    if not session.informative:
        what = "the completions of each prompt had equal scores in every iteration, or all advantages were 0"
        session.recorder.notice(f"{what}: there was nothing to learn from the reward")
    elif session.ratio_moved < RATIO_MOVED:
        session.recorder.notice("the ratio was 1 at every gradient (one step per rollout): no gate can matter in this run")
    return False


def iterate(session: Session) -> Metrics:
    """Run and record one iteration: collect, learn, and evaluate if due."""
    clock = Clock()
    every, last = session.settings.gradvar_every, session.iteration + 1 == session.num_iterations
    rollout = session.task.collect(session.policy)
    clock.add("collect")
    metrics: Metrics = dict(rollout.metrics)
    metrics |= session.algorithm.learn(session.policy, rollout, every > 0 and session.iteration % every == 0)
    clock.add("update")  # overridden below if the algorithm measures its own phases
    session.iteration += 1
    num_steps = int(rollout.live().sum())
    session.env_steps += num_steps
    session.ratio_moved = max(session.ratio_moved, number(metrics, "ratio/abs_log_max_learning", math.inf))
    session.informative = session.informative or is_informative(metrics)
    every = session.settings.eval_every
    if every > 0 and (session.iteration % every == 0 or last):
        evaluation = Clock()
        metrics |= session.task.evaluate(session.policy)
        evaluation.add("evaluate")
        metrics |= evaluation.seconds
    clock.total("iteration")
    metrics = {**clock.seconds, **metrics}
    busy = sum(number(metrics, f"time/{phase}_s", 0.0) for phase in ("collect", "update", "diagnostics"))
    metrics["speed/env_steps_per_s"] = num_steps / busy
    rows = rows_with_advantage(rollout, getattr(session.algorithm, "advantage", None))
    session.recorder.record(session.iteration, session.env_steps, metrics, session.task.take_samples(), rows)
    return metrics


def is_informative(metrics: Metrics) -> bool:
    """False if an iteration's advantages are all 0, or no prompt has completions with different scores."""
    if "advantage/std" not in metrics:  # the algorithm does not learn from advantages
        return True
    alike = number(metrics, "language/zero_variance_group_share", 0.0) == 1
    return not alike and any(number(metrics, f"advantage/{moment}", 0.0) != 0 for moment in ("mean", "std"))
