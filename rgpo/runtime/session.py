"""One attempt at one run: setup, resume, iterations, checkpoints, and the record of how it ended."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rgpo import atomic, distributed
from rgpo.errors import ConfigError, NonFiniteError, OutOfMemory, StorageError, require
from rgpo.learning.types import Algorithm, Metrics, Policy, Task
from rgpo.runtime import checkpoint, run_folder
from rgpo.runtime.metrics import number
from rgpo.runtime.recorder import Recorder
from rgpo.runtime.settings import Settings


def seeds_of(seed: int) -> tuple[int, int, int]:
    """The seeds of task, policy and algorithm."""
    first, second, third = (int(x) >> 1 for x in np.random.SeedSequence(seed).generate_state(3))
    return first, second, third


def set_up(settings: Settings, task: Task, algorithm: Algorithm) -> tuple[Policy, int]:
    """Prepare the parts of a run for its first iteration; returns its policy and its number of iterations."""
    seeds = seeds_of(settings.seed)
    task.setup(seeds[0], algorithm.requirements)
    policy = task.make_policy(seeds[1])
    num_iterations = settings.num_iterations
    if num_iterations is None:
        assert settings.total_env_steps is not None  # a checked configuration has one of the two
        num_iterations = task.plan_iterations(settings.total_env_steps)
    algorithm.setup(policy, num_iterations, seeds[2])
    return policy, num_iterations


def restore(saved: checkpoint.Checkpoint, task: Task, policy: Policy, algorithm: Algorithm) -> None:
    """Give the parts of a run, once set up, the state of its checkpoint; the task refuses one of other data first."""
    task.load_state_dict(saved["task"])
    policy.load_state_dict(saved["policy"])
    algorithm.load_state_dict(saved["algorithm"])


class Session:
    """Every process computes; rank 0 alone writes and prints."""

    def __init__(
        self, config: Mapping[str, object], task: Task, algorithm: Algorithm, run_dir: Path, config_hash: str, command: str
    ) -> None:
        self.settings = Settings.of(config)
        self.task, self.algorithm = task, algorithm
        self.run_dir, self.config_hash, self.command = run_dir, config_hash, command
        self.recorder = Recorder(config, task, run_dir)
        self.attempt = run_folder.read_state(run_dir).get("attempt", 0) + 1
        self.iteration = self.env_steps = self.num_iterations = 0
        self.last_checkpoint = 0  # iteration; 0: none
        self.ratio_moved = 0.0  # nats; largest |log ratio| at which a gradient was taken; infinite if it is not measured

    def start(self) -> None:
        """Record what the run is, set up its parts and load the last checkpoint if there is one."""
        settings = self.settings
        self.write_state("running")
        self.recorder.write_facts(self.config_hash, self.command, self.attempt, self.algorithm.describe())
        self.policy, self.num_iterations = set_up(settings, self.task, self.algorithm)
        saved = checkpoint.load(self.run_dir, self.config_hash)
        if saved is not None:
            self._load(saved)
        alike = len(set(distributed.all_gather(self.iteration))) == 1
        require(
            alike, "results_dir", settings.results_dir, "the processes see different files; use a folder that all of them share."
        )
        self.recorder.open(self.iteration, self.num_iterations, self.algorithm.note)
        if saved is not None:
            self._compare_machines(saved)

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        self.iteration = self.last_checkpoint = saved["iteration"]
        self.env_steps = saved["env_steps"]
        self.ratio_moved = saved["ratio_moved"]
        restore(saved, self.task, self.policy, self.algorithm)

    def _compare_machines(self, saved: checkpoint.Checkpoint) -> None:
        """Print a notice if the checkpoint was written by another number of processes or threads."""
        processes, threads = saved["num_processes"], saved["num_threads"]
        if (processes, threads) != (distributed.world_size(), self.settings.num_threads):
            was = f"{processes} process(es) wrote the checkpoint, with {threads} thread(s) each"
            self.recorder.notice(f"{was}: the resumed run is equal up to rounding, not bit for bit")

    def iterate(self) -> Metrics:
        """Collect, learn, evaluate if it is due, and record one iteration."""
        start = time.perf_counter()
        every, last = self.settings.gradvar_every, self.iteration + 1 == self.num_iterations
        rollout = self.task.collect(self.policy)
        collected = time.perf_counter()
        metrics: Metrics = dict(rollout.metrics)
        metrics |= self.algorithm.learn(self.policy, rollout, every > 0 and self.iteration % every == 0)
        metrics.setdefault("time/update_s", time.perf_counter() - collected)
        self.iteration += 1
        num_steps = int(rollout.live().sum())
        self.env_steps += num_steps
        self.ratio_moved = max(self.ratio_moved, number(metrics, "ratio/abs_log_max_learning", math.inf))
        every = self.settings.eval_every
        if every > 0 and (self.iteration % every == 0 or last):
            before = time.perf_counter()
            metrics |= self.task.evaluate(self.policy)
            metrics["time/evaluate_s"] = time.perf_counter() - before
        metrics["time/collect_s"] = collected - start
        busy = sum(number(metrics, f"time/{phase}_s", 0.0) for phase in ("collect", "update", "diagnostics"))
        metrics["speed/env_steps_per_s"] = num_steps / busy
        metrics["time/iteration_s"] = time.perf_counter() - start
        self.recorder.record(self.iteration, self.env_steps, metrics, self.task.take_samples())
        return metrics

    def save(self) -> None:
        """Flush the metrics, then replace the checkpoint, so that a checkpoint is never ahead of the rows on disk."""
        state: checkpoint.Checkpoint = {
            "config_hash": self.config_hash,
            "num_processes": distributed.world_size(),
            "num_threads": self.settings.num_threads,
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "ratio_moved": self.ratio_moved,
            "policy": self.policy.state_dict(),  # on every rank: it may gather shards
            "algorithm": self.algorithm.state_dict(),
            "task": self.task.state_dict(),
        }
        self.recorder.flush()
        self._write(state)
        self.last_checkpoint = self.iteration

    @distributed.on_first
    def _write(self, state: checkpoint.Checkpoint) -> None:
        checkpoint.save(self.run_dir, state)
        self.write_state("running")

    def finish(self, metrics: Metrics) -> None:
        """Write the joined files, record completion and print a summary; metrics: the last iteration's, {} if there was none."""
        self.recorder.join_parts()
        self.write_state("completed")
        self.recorder.remove_parts()
        self.recorder.summarize(metrics)

    @distributed.on_first
    def write_state(self, status: str, reason: str | None = None) -> None:
        """Write state.json."""
        counts = {"attempt": self.attempt, "iteration": self.iteration, "num_iterations": self.num_iterations}
        run_folder.write_state(self.run_dir, status=status, **counts, reason=reason)

    def fail(self, error: BaseException) -> None:
        """Keep everything measured so far and record what happened, where, and from which iteration the run can resume."""
        explained = isinstance(error, NonFiniteError | StorageError | OutOfMemory)
        if explained:
            good = (
                f"the last good checkpoint is after iteration {self.last_checkpoint}"
                if self.last_checkpoint
                else "no checkpoint yet"
            )
            kept = f"metrics flushed before are kept in {self.run_dir}"
            error.args = (f"iteration {self.iteration + 1}: {str(error.args[0]).rstrip('.')}; {good}; {kept}.",)
        known = explained or isinstance(error, ConfigError)
        sentence = " ".join(f"{error}".split() if known else f"{type(error).__name__}: {error}".split())
        reason, mine = distributed.agree_on_error(sentence, error)
        try:
            self.write_state("failed", reason)
            if mine and not known:
                atomic.write_text(self.run_dir / "error.txt", "".join(traceback.format_exception(error)))
            self.recorder.flush()
        except OSError as second:  # a full disk must not hide the first error
            print(f"{self.run_dir}: could not record everything ({second.strerror})", flush=True)
