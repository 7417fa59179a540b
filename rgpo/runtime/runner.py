"""The loop: collect, learn, evaluate, write, checkpoint; resume what was interrupted, skip what is finished."""

from __future__ import annotations

import json
import math
import shlex
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rgpo import distributed
from rgpo.errors import ConfigError, NonFiniteError, OutOfMemory, StorageError, is_out_of_memory, require
from rgpo.learning.algorithm import Algorithm
from rgpo.runtime import checkpoint, console, provenance, run_folder
from rgpo.runtime.metrics import MetricsWriter
from rgpo.runtime.signals import Interrupted, Signals
from rgpo.runtime.trackers import Exports

RATIO_MOVED = 1e-4  # nats; below it the log ratio is rounding


Parts = tuple[Any, Algorithm]  # the task and the algorithm


def run(config: Mapping[str, Any], parts: Parts, run_dir: Path, config_hash: str, command: str) -> str:
    """Run or resume one plain configuration, whose parts are given, in its folder; returns completed, skipped or held.

    Raises Interrupted after a signal, ConfigError, NonFiniteError or whatever the task raised; state.json says which.
    """
    with _hold(run_dir) as verdict:
        if verdict == "held":
            print(f"{run_dir}: another process is running it, skipped", flush=True)
            return verdict
        if verdict == "skipped":
            print(f"{run_dir}: already complete, skipped (force=true runs it again)", flush=True)
            return verdict
        session = _Session(config, parts, run_dir, config_hash, command)
        with Signals() as signals:
            try:
                session.start()
                session.loop(signals)
            except Interrupted:
                session.state("interrupted", "stopped by a signal")
                raise
            except KeyboardInterrupt:
                session.state("interrupted", "stopped at once; goes on from the last checkpoint")
                raise
            except OSError as error:
                failure = StorageError(f"results_dir: {error.strerror or error}; free some space and repeat the command.")
                session.fail(failure)
                raise failure from error
            except BaseException as error:
                if is_out_of_memory(error):
                    memory = OutOfMemory(f"out of memory; {session.task.memory_advice}.")
                    session.fail(memory)
                    raise memory from error
                session.fail(error)
                raise
        return "completed"


@contextmanager
def _hold(run_dir: Path) -> Iterator[str]:
    """The first process holds the folder for all; yields held, skipped or free."""
    with run_folder.lock(run_dir) if distributed.rank() == 0 else nullcontext(True) as mine:
        completed = run_folder.read_state(run_dir).get("status") == "completed"
        yield distributed.gather("held" if not mine else "skipped" if completed else "free")[0]


class _Session:
    """One attempt at one run, in one process or in several: all compute, the first alone writes and prints."""

    def __init__(self, config: Mapping[str, Any], parts: Parts, run_dir: Path, config_hash: str, command: str) -> None:
        self.config = config
        self.task, self.algorithm = parts
        self.run_dir = run_dir
        self.config_hash = config_hash
        self.command = command
        self.attempt = int(run_folder.read_state(run_dir).get("attempt", 0)) + 1
        self.iteration = 0
        self.env_steps = 0
        self.num_iterations = 0
        self.writer: MetricsWriter | None = None
        self.progress: console.Progress | None = None
        self.last_checkpoint = 0  # iteration; 0 none
        self.ratio_moved = 0.0  # largest |log ratio| a gradient was taken at
        self.started = time.monotonic()

    def start(self) -> None:
        """Write what the run is, make its parts, and take over the last checkpoint if there is one."""
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(self.config["num_threads"])
        threadpool_limits(self.config["num_threads"])  # numpy's, which would take every core and wait for work by spinning
        self.state("running", None)
        self._write_facts()
        seeds = [int(x) >> 1 for x in np.random.SeedSequence(self.config["seed"]).generate_state(3)]
        self.task.setup(seeds[0], self.algorithm.advantage.gamma)
        self.policy = self.task.make_policy(seeds[1])
        self.num_iterations = self.config["num_iterations"] or self.task.plan_iterations(self.config["total_env_steps"])
        self.algorithm.setup(self.policy, self.num_iterations, seeds[2])
        saved = checkpoint.load(self.run_dir, self.config_hash)
        if saved is not None:
            self._load(saved)
        alike = len(set(distributed.gather(self.iteration))) == 1
        require(alike, "results_dir", self.config["results_dir"], "the processes see different files there, share one folder.")
        self._open()

    @distributed.on_first
    def _write_facts(self) -> None:
        self.facts = provenance.collect(
            self.run_dir.name, self.config_hash, self.command, self.config["num_threads"], self.attempt
        )
        (self.run_dir / "config.yaml").write_text(yaml.safe_dump(dict(self.config), sort_keys=False))
        (self.run_dir / "provenance.json").write_text(json.dumps(self.facts, indent=1) + "\n")

    @distributed.on_first
    def _open(self) -> None:
        facts, choices = self.facts, self.config["choices"]
        row = {key: choices[key] for key in ("task", "scale", "algo", "gate")}
        row |= {"run_id": self.run_dir.name, "config_hash": self.config_hash, "git_sha": provenance.git_sha(facts)}
        text = yaml.safe_dump(dict(self.config), sort_keys=False)
        metadata = {"config": text, "versions": json.dumps(facts["versions"])}
        self.writer = MetricsWriter(
            self.run_dir, row, self.config["seed"], self.attempt, keep_until=self.iteration, metadata=metadata
        )
        self.exports = Exports(self.config["exports"], self.run_dir, self.config, self.iteration)
        print(
            console.banner(self.run_dir, self.config, facts, self.num_iterations, self.algorithm.update.note),
            flush=True,
        )
        if self.iteration:
            print(f"  attempt {self.attempt} resumes after iteration {self.iteration:,} of {self.num_iterations:,}", flush=True)
            if (self.num_processes, self.num_threads) != (distributed.world_size(), self.config["num_threads"]):
                was = f"{self.num_processes} process(es) wrote the checkpoint, {self.num_threads} thread(s) each"
                print(f"  {was}: the resumed run is equal to rounding, not bit for bit", flush=True)
        self.progress = console.Progress(self.num_iterations, self.iteration)

    def loop(self, signals: Signals) -> None:
        """All remaining iterations. Interrupted after a signal."""
        signals.iterating = True
        saved_at = time.monotonic()
        metrics: dict[str, Any] = {}
        try:
            while self.iteration < self.num_iterations:
                metrics = self._iterate()
                self._report(metrics, self.task.take_samples())
                due = time.monotonic() - saved_at >= self.config["checkpoint_every_s"]
                received, due = zip(*distributed.gather((signals.received or 0, due)), strict=True)
                if any(received):
                    self._save()
                    raise Interrupted(max(received))
                if due[0]:
                    self._save()
                    saved_at = time.monotonic()
        finally:
            self._close()
        self._save()
        self._finish(metrics)

    @distributed.on_first
    def _report(self, metrics: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        assert self.writer is not None and self.progress is not None
        self.writer.log(self.iteration, self.env_steps, metrics)
        self.exports.log(self.iteration, metrics)
        self.writer.log_samples(self.iteration, samples)
        self.progress.update(self.iteration, self.env_steps, metrics, self.task.headline(metrics))

    @distributed.on_first
    def _close(self) -> None:
        assert self.progress is not None
        self.progress.close()
        self.exports.finish()

    @distributed.on_first
    def _finish(self, metrics: dict[str, Any]) -> None:
        assert self.writer is not None
        self.writer.finish()
        self.state("completed", None)
        self.writer.remove_parts()
        self._summarise(metrics)

    def _iterate(self) -> dict[str, Any]:
        start = time.perf_counter()
        every, last = self.config["gradvar_every"], self.iteration + 1 == self.num_iterations
        measure = every > 0 and (self.iteration % every == 0)
        rollout = self.task.collect(self.policy)
        collected = time.perf_counter()
        metrics: dict[str, Any] = rollout.metrics | self.algorithm.learn(self.policy, rollout, measure)
        self.iteration += 1
        num_steps = int(rollout.live().sum())
        self.env_steps += num_steps
        self.ratio_moved = max(self.ratio_moved, metrics.get("ratio/abs_log_max_learning", math.inf))
        evaluate = self.config["eval_every"]
        if evaluate > 0 and (self.iteration % evaluate == 0 or last):
            before = time.perf_counter()
            metrics |= self.task.evaluate(self.policy)
            metrics["time/evaluate_s"] = time.perf_counter() - before
        metrics["time/collect_s"] = collected - start
        busy = sum(metrics.get(f"time/{phase}_s", 0.0) for phase in ("collect", "update", "diagnostics"))
        metrics["speed/env_steps_per_s"] = num_steps / busy
        metrics["time/iteration_s"] = time.perf_counter() - start
        return metrics

    def _save(self) -> None:
        state = {
            "config_hash": self.config_hash,
            "num_processes": distributed.world_size(),
            "num_threads": self.config["num_threads"],
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "ratio_moved": self.ratio_moved,
            "policy": self.policy.state_dict(),
            "algorithm": self.algorithm.state_dict(),
            "task": self.task.state_dict(),
        }
        self._write(state)
        self.last_checkpoint = self.iteration

    @distributed.on_first
    def _write(self, state: dict[str, Any]) -> None:
        """Flush the metrics, then replace the checkpoint: a checkpoint never knows more than the rows on disk."""
        assert self.writer is not None
        self.writer.flush()
        checkpoint.save(self.run_dir, state)
        self.state("running", None)

    def _load(self, saved: dict[str, Any]) -> None:
        self.iteration = self.last_checkpoint = saved["iteration"]
        self.num_processes = saved["num_processes"]
        self.num_threads = saved.get("num_threads", self.config["num_threads"])
        self.env_steps = saved["env_steps"]
        self.ratio_moved = saved["ratio_moved"]
        self.policy.load_state_dict(saved["policy"])
        self.algorithm.load_state_dict(saved["algorithm"])
        self.task.load_state_dict(saved["task"])

    @distributed.on_first
    def state(self, status: str, reason: str | None) -> None:
        """Write state.json."""
        run_folder.write_state(
            self.run_dir,
            status=status,
            attempt=self.attempt,
            iteration=self.iteration,
            num_iterations=self.num_iterations,
            reason=reason,
        )

    def fail(self, error: BaseException) -> None:
        """Keep everything measured so far and say what happened, where, and what can be gone on from."""
        where = f"iteration {self.iteration + 1}"
        good = (
            f"the last good checkpoint is after iteration {self.last_checkpoint}" if self.last_checkpoint else "no checkpoint yet"
        )
        told = isinstance(error, NonFiniteError | StorageError | OutOfMemory)
        if told:
            error.args = (f"{where}: {error.args[0].rstrip('.')}; {good}; everything flushed before is kept in {self.run_dir}.",)
        known = told or isinstance(error, ConfigError)
        sentence = " ".join(f"{error}".split() if known else f"{type(error).__name__}: {error}".split())
        reason, mine = distributed.failed(sentence, error)
        try:
            self.state("failed", reason)
            if mine and not known:
                (self.run_dir / "error.txt").write_text("".join(traceback.format_exception(error)))
            if self.writer is not None:
                self.writer.flush()
        except OSError as second:  # a full disk must not hide the first error
            print(f"{self.run_dir}: could not record everything ({second.strerror})", flush=True)

    def _summarise(self, metrics: Mapping[str, Any]) -> None:
        minutes, seconds = divmod(time.monotonic() - self.started, 60)
        print(f"  done in {minutes:.0f} min {seconds:.0f} s: {self.run_dir / 'metrics.parquet'}")
        if not metrics:  # stopped between its last iteration and its end: the rows on disk say what was measured
            return
        for line in self.task.summary(metrics):
            print(f"  {line}")
        report = f"rgpo-report results_dir={shlex.quote(self.config['results_dir'])} experiment={self.config['name']}"
        print(f"  last KL(old || new) {metrics['kl/old_exact']:.4g}; `{report}` draws it", flush=True)
        if self.ratio_moved < RATIO_MOVED:
            print("  the ratio was 1 at every gradient (one step per rollout): no gate can matter in this run", flush=True)
