"""One attempt at one run: setup, resume, iterations, checkpoints, and the record of how it ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from rgpo import atomic, distributed
from rgpo.errors import EXPLAINED, MAX_LINE, ConfigError, EnvironmentFault, StorageError, first_line, printable, require
from rgpo.learning.export import NoExport
from rgpo.learning.types import Algorithm, Metrics, Policy, State, Task
from rgpo.runtime import checkpoint, continuation, export, gate_curve, manifest, provenance, reader, run_folder
from rgpo.runtime.parts import storing
from rgpo.runtime.recorder import Recorder
from rgpo.runtime.settings import Settings


def seeds_of(seed: int) -> tuple[int, int, int]:
    """The seeds of task, policy and algorithm."""
    first, second, third = (int(x) >> 1 for x in np.random.SeedSequence(seed).generate_state(3))
    return first, second, third


def set_up(settings: Settings, task: Task, algorithm: Algorithm) -> tuple[Policy, int]:
    """Set up task, policy and algorithm for the first iteration; returns the policy and the number of iterations."""
    seeds = seeds_of(settings.seed)
    task.setup(seeds[0], algorithm.requirements)
    policy = task.make_policy(seeds[1])
    num_iterations = settings.num_iterations
    if num_iterations is None:
        assert settings.total_env_steps is not None  # checked: a configuration has at least one of the two
        num_iterations = task.plan_iterations(settings.total_env_steps)
    algorithm.setup(policy, num_iterations, seeds[2])
    return policy, num_iterations


def restore(saved: checkpoint.Checkpoint, task: Task, policy: Policy, algorithm: Algorithm) -> None:
    """Load a checkpoint into parts that have been set up; the task comes first and refuses a checkpoint with other data."""
    task.load_state_dict(saved["task"])
    policy.load_state_dict(saved["policy"])
    algorithm.load_state_dict(saved["algorithm"])


class Session:
    """One attempt at one run; every process computes, but only rank 0 writes and prints."""

    def __init__(
        self, config: Mapping[str, object], task: Task, algorithm: Algorithm, run_dir: Path, config_hash: str, command: str
    ) -> None:
        self.settings = Settings.of(config)
        self.task, self.algorithm = task, algorithm
        self.run_dir, self.config_hash, self.command = run_dir, config_hash, command
        self.recorder = Recorder(config, task, run_dir)
        self.attempt = run_folder.last_attempt(run_dir) + 1
        self.iteration = self.env_steps = self.num_iterations = 0
        self.last_checkpoint = 0  # its iteration, 0 if there is none
        self._lock_file = run_folder.lock_file(run_dir)
        self.ratio_moved = 0.0  # nats; largest |log ratio| at which a gradient was taken; infinite if not measured
        self.inexact = ""  # why the run is not resumed bit for bit
        self.informative = False  # whether any iteration had a learning signal

    def start(self) -> None:
        """Record configuration and provenance, set up the parts, and load the last checkpoint if there is one."""
        settings = self.settings
        self._reopen()
        self.write_state("running")
        curve = gate_curve.drawn(getattr(self.algorithm, "gate", None))
        self.recorder.write_facts(self.config_hash, self.command, self.attempt, self.algorithm.describe(), curve)
        self.policy, self.num_iterations = set_up(settings, self.task, self.algorithm)
        self._continue_earlier()
        self.recorder.read_earlier()
        saved = self._find_checkpoint()
        if saved is not None:
            self._load(saved)
        alike = len(set(distributed.all_gather(self.iteration))) == 1
        require(
            alike, "results_dir", settings.results_dir, "the processes see different files; use a folder that all of them share."
        )
        self.recorder.open(self.iteration, self.env_steps, self.num_iterations, self.algorithm.note, self.inexact)
        self.write_state("running")  # again: readers need the number of iterations before the first checkpoint
        if saved is not None:
            self._compare_machines(saved)

    @distributed.on_first
    def _continue_earlier(self) -> None:
        """Copy rows and checkpoint of the run named by resume_from."""
        if text := continuation.begin(self.recorder.config, self.run_dir, self.config_hash, self.num_iterations):
            self.recorder.notes.append(text)

    @distributed.on_first
    def _reopen(self) -> None:
        self.recorder.notes += run_folder.reopen(self.run_dir)

    def _find_checkpoint(self) -> checkpoint.Checkpoint | None:
        """The checkpoint chosen by rank 0, so that all processes continue from the same one."""
        found: checkpoint.Checkpoint | None = None
        choice: str | Exception | None = None
        if distributed.rank() == 0:
            try:
                choice = checkpoint.NAME if (found := self._choose_checkpoint()) is not None else None
            except (ConfigError, StorageError) as error:
                choice = error
        choice = distributed.all_gather(choice)[0]
        if isinstance(choice, Exception):
            raise choice
        if choice and distributed.rank():
            with suppress(reader.Unreadable):  # start() then finds different iterations
                found = checkpoint.read(self.run_dir / choice, self.config_hash)
        return found

    def _choose_checkpoint(self) -> checkpoint.Checkpoint | None:
        """The last intact checkpoint up to which no rows are missing; damaged ones are set aside."""
        lost: list[str] = []

        def usable(saved: checkpoint.Checkpoint) -> bool:
            clauses = self.recorder.lost(saved["iteration"], saved["num_samples"])
            lost[:] = lost or clauses
            return not clauses

        found = checkpoint.find(self.run_dir, self.config_hash, usable)
        where = f"after iteration {found.checkpoint['iteration']:,}" if found.checkpoint else "from the beginning"
        with atomic.storing(self.run_dir):
            for name, why in found.damage.items():
                path = self.run_dir / name
                if os.path.lexists(path):
                    why += f"; it was renamed to {atomic.set_aside(path, self.run_dir, 'damaged').name}"
                self.recorder.notes.append(why)
            if found.damage and found.name == checkpoint.PREVIOUS:
                atomic.rename(self.run_dir / found.name, self.run_dir / checkpoint.NAME)
                atomic.sync_folder(self.run_dir)
        if not lost and not found.damage and found.checkpoint is None and (measured := self.recorder.num_earlier):
            lost.append(f"there is no checkpoint of the {measured:,} iteration(s) measured before")
        if lost or found.damage:
            self.recorder.notes.append("; ".join([*lost, f"the run continues {where}"]))
        return found.checkpoint

    def _load(self, saved: checkpoint.Checkpoint) -> None:
        self.iteration = self.last_checkpoint = saved["iteration"]
        self.env_steps = saved["env_steps"]
        self.ratio_moved = saved["ratio_moved"]
        self.informative = saved["informative"]
        restore(saved, self.task, self.policy, self.algorithm)
        self.inexact = str(getattr(self.task, "inexact", ""))

    def _compare_machines(self, saved: checkpoint.Checkpoint) -> None:
        """Print a notice if the checkpoint was written with a different number of processes or threads."""
        processes, threads = saved["num_processes"], saved["num_threads"]
        if (processes, threads) != (distributed.world_size(), self.settings.num_threads):
            was = f"{processes} process(es) wrote the checkpoint, with {threads} thread(s) each"
            self.recorder.notice(f"{was}: the resumed run is equal up to rounding, not bit for bit")

    def save(self) -> None:
        """Flush the metrics, then replace the checkpoint, so that a checkpoint is never ahead of the rows on disk.

        Raises: StorageError if the folder was deleted or cannot be written.
        """
        if self.iteration == self.last_checkpoint:
            return
        self._require_folder()
        self.recorder.flush()
        state: checkpoint.Checkpoint = {
            "config_hash": self.config_hash,
            "num_processes": distributed.world_size(),
            "num_threads": self.settings.num_threads,
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "num_samples": self.recorder.num_samples,
            "ratio_moved": self.ratio_moved,
            "informative": self.informative,
            "policy": self.policy.state_dict(),  # on every rank: it may gather shards
            "algorithm": self.algorithm.state_dict(),
            "task": self.task.state_dict(),
        }
        self._write(state)
        self.last_checkpoint = self.iteration

    @distributed.on_first
    def _write(self, state: checkpoint.Checkpoint) -> None:
        checkpoint.save(self.run_dir, state)
        self.write_state("running")

    def finish(self, metrics: Metrics) -> None:
        """Write the joined files, record completion and print a summary; metrics: the last iteration's, {} without one."""
        self._require_folder()
        self.recorder.join_parts()
        if self.settings.save_model:
            self._export(self.policy.state_dict())  # on every rank: it may gather shards
        self._complete()
        self.recorder.summarize(metrics)

    @distributed.on_first
    def _export(self, state: State) -> None:
        """Write policy/ or model/; if the policy cannot be exported, only a notice is printed."""
        with atomic.storing(self.run_dir):
            try:
                facts = export.facts_of(self.run_dir, self.recorder.config, self.iteration, self.env_steps)
            except NoExport as error:
                self.recorder.notice(f"no policy/ or model/: {error}")
                return
            if why := export.finish(self.task, self.policy, state, self.run_dir, facts):
                self.recorder.notice(why)

    @distributed.on_first
    def _complete(self) -> None:
        """Write the digests, then the state; only then remove the files that are no longer needed."""
        with storing(self.run_dir):
            manifest.write(self.run_dir, self.attempt, self.num_iterations)
        self.write_state("completed")
        run_folder.tidy(self.run_dir)

    @distributed.on_first
    def _require_folder(self) -> None:
        run_folder.require_same(self.run_dir, self._lock_file)

    @distributed.on_first
    def write_state(self, status: str, reason: str | None = None) -> None:
        """Write state.json."""
        counts = {"attempt": self.attempt, "iteration": self.iteration, "num_iterations": self.num_iterations}
        run_folder.write_state(self.run_dir, status=status, **counts, reason=reason)

    def fail(self, error: BaseException) -> None:
        """Record the error with its iteration and the last checkpoint, and keep everything measured so far."""
        if explained := isinstance(error, EXPLAINED):
            clauses = [str(error.args[0]).rstrip("."), *self._kept()]
            error.args = (f"iteration {self.iteration + 1}: {'; '.join(clauses)}.",)
        known = explained or isinstance(error, ConfigError)
        sentence = " ".join(f"{error}".split() if known else f"{type(error).__name__}: {error}".split())
        reason, mine = distributed.agree_on_error(provenance.redact(sentence), error)
        try:
            self._require_folder()
            self.write_state("failed", reason)
            with atomic.storing(self.run_dir):
                if mine and (isinstance(error, EnvironmentFault) or not known):
                    atomic.write_text(self.run_dir / run_folder.ERROR, run_folder.traceback_of(error), fsync=True)
                elif mine:
                    atomic.remove([self.run_dir / run_folder.ERROR])  # from an earlier attempt
            self.recorder.flush()
        except Exception as second:  # such as a full disk; must not hide the first error
            if not isinstance(error, StorageError):
                print(f"{printable(str(self.run_dir), MAX_LINE)}: could not record everything ({first_line(second)})", flush=True)

    def _kept(self) -> list[str]:
        """Clauses about the checkpoint and metrics from which the run can resume."""
        try:
            run_folder.require_same(self.run_dir, self._lock_file)
        except StorageError:
            return []
        if self.last_checkpoint:
            good = f"the last good checkpoint is after iteration {self.last_checkpoint}"
        else:  # this attempt has neither saved nor loaded one
            found = [name for name in (checkpoint.NAME, checkpoint.PREVIOUS) if (self.run_dir / name).exists()]
            good = f"{found[0]} of an earlier attempt is kept" if found else "no checkpoint yet"
        return [good, f"metrics flushed before are kept in {self.run_dir}"]
