"""The output of one attempt at a run: its files, except for checkpoints, and everything it prints."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import yaml

from rgpo import atomic
from rgpo.distributed import on_first
from rgpo.errors import MAX_LINE, printable, shell_word
from rgpo.learning.standstill import standstill
from rgpo.learning.types import Metrics, Task
from rgpo.runtime import console, own_code, own_metrics, provenance, reader
from rgpo.runtime.code_digest import code_digest
from rgpo.runtime.metrics import MetricsWriter, number
from rgpo.runtime.parts import Row
from rgpo.runtime.settings import Settings
from rgpo.runtime.trackers import Trackers

STANDSTILL = ("kl/old_exact", "grad/norm_max")  # metrics that standstill() takes


class Recorder:
    """Writes and prints on rank 0; its methods have no effect on other ranks."""

    def __init__(self, config: Mapping[str, object], task: Task, run_dir: Path) -> None:
        self.config, self.settings, self.task, self.run_dir = config, Settings.of(config), task, run_dir
        self._started = time.monotonic()
        self._writer: MetricsWriter | None = None
        self.notes: list[str] = []  # messages about earlier attempts

    @on_first
    def write_facts(
        self, config_hash: str, command: str, attempt: int, algorithm: Mapping[str, str], curve: provenance.GateCurve | None
    ) -> None:
        """Write config.yaml and provenance.json."""
        task = cast(Mapping[str, object], self.config.get("task", {}))  # missing if the runner is used on its own
        code = code_digest(cast(Mapping[str, object], self.config["choices"]), str(task.get("_target_", "")))
        earlier, every = self._earlier_attempts(), provenance.with_earlier_code(self.run_dir, code)
        num_threads = self.settings.num_threads
        self._facts = provenance.collect(self.run_dir.name, config_hash, command, num_threads, attempt, algorithm, every)
        self._facts["gate_curve"] = curve
        mine = provenance.attempt_of(self._facts, code, own_code.digests())
        self._facts["attempts"] = [*earlier, mine]
        with atomic.storing(self.run_dir):
            atomic.write_text(self.run_dir / "config.yaml", self._config_text(), fsync=True)
        self._write_facts()

    def _write_facts(self) -> None:
        with atomic.storing(self.run_dir):
            atomic.write_text(self.run_dir / "provenance.json", json.dumps(self._facts, indent=1) + "\n", fsync=True)

    def _earlier_attempts(self) -> list[provenance.Attempt]:
        """The attempts in provenance.json; [] for a new run, or if the file is damaged."""
        try:
            return reader.read_json(self.run_dir / "provenance.json", provenance.Provenance).get("attempts", [])
        except reader.Unreadable:
            return []

    def _config_text(self) -> str:
        return yaml.safe_dump(provenance.redact_values(dict(self.config)), sort_keys=False)

    @on_first
    def read_earlier(self) -> None:
        """Read the rows of earlier attempts and set damaged files aside; also record the versions that the task has loaded."""
        facts, seed = self._facts, self.settings.seed
        loaded: Mapping[str, str] = getattr(self.task, "versions", {})
        if loaded:
            facts["versions"] |= loaded  # shared with the attempt's entry
            self._write_facts()
        if changed := provenance.changes(facts["attempts"]):
            self.notes.append(changed)
        row = {group: self.settings.choice(group) for group in ("task", "scale", "algo", "gate")}
        row |= {"run_id": self.run_dir.name, "config_hash": facts["config_hash"], "git_sha": provenance.git_sha(facts)}
        metadata = {"config": self._config_text(), "versions": json.dumps(facts["versions"]), "code": facts["code"]}
        glossary = own_metrics.glossary(self.config)
        texts = own_metrics.sample_columns(self.config), own_metrics.rollout_columns(self.config)
        self._writer = MetricsWriter(self.run_dir, row, seed, facts["attempt"], metadata, glossary, *texts)
        self.notes += self._writer.damage

    def lost(self, iteration: int, num_samples: int) -> list[str]:
        """One clause for each kind of rows that are missing up to an iteration's checkpoint; [] on other ranks."""
        return self._writer.lost(iteration, num_samples) if self._writer is not None else []

    @property
    def num_earlier(self) -> int:
        """Number of iterations with a row from an earlier attempt; 0 on other ranks."""
        return self._writer.num_earlier if self._writer is not None else 0

    @property
    def num_samples(self) -> int:
        """Number of rows of samples and rollouts so far; 0 on other ranks."""
        return self._writer.num_samples if self._writer is not None else 0

    @on_first
    def open(self, iteration: int, env_steps: int, num_iterations: int, note: str, inexact: str) -> None:
        """Continue after an iteration: open metrics and dashboards, print the banner and messages about earlier attempts.

        inexact: why the run is not resumed bit for bit, or "".
        """
        assert self._writer is not None
        facts = self._facts
        self._writer.resume(iteration)
        config = cast(Mapping[str, object], provenance.redact_values(self.config))
        self._trackers = Trackers(self.settings.exports, self.run_dir, config, env_steps)
        print(
            console.banner(self.run_dir, self.settings, facts, num_iterations, note, getattr(self.task, "facts", {})), flush=True
        )
        if iteration:
            print(f"  attempt {facts['attempt']} resumes after iteration {iteration:,} of {num_iterations:,}", flush=True)
        if inexact:
            self.notice(f"not bit for bit: {inexact}")
        for text in (*getattr(self.task, "findings", ()), *self.notes):
            self.notice(text)
        self._progress = console.Progress(num_iterations, iteration)

    @on_first
    def notice(self, text: str) -> None:
        """Print an indented line."""
        print(f"  {text}", flush=True)

    @on_first
    def record(
        self, iteration: int, env_steps: int, metrics: Metrics, samples: Iterable[Row], rollout: Iterable[Row] = ()
    ) -> None:
        """Add one iteration to metrics, dashboards, samples, rollouts and the progress line."""
        assert self._writer is not None
        self._writer.log(iteration, env_steps, metrics)
        self._trackers.log(env_steps, {"iteration": float(iteration), **metrics})
        rows = list(samples)
        self._writer.log_samples(iteration, rows)
        self._trackers.log_texts(env_steps, rows)
        self._writer.log_rollout(iteration, rollout)
        self._progress.update(iteration, env_steps, metrics, self.task.headline(metrics))

    @on_first
    def flush(self) -> None:
        """Write all buffered rows, if there are any."""
        if self._writer is not None:
            self._writer.flush()

    @on_first
    def close(self) -> None:
        """Print the last progress line and close the dashboards."""
        self._progress.close()
        self._trackers.finish()

    @on_first
    def join_parts(self) -> None:
        """Write metrics.parquet, samples.parquet and rollouts.parquet."""
        assert self._writer is not None
        self._writer.finish()

    @on_first
    def summarize(self, metrics: Metrics) -> None:
        """Print the time taken, the task's summary and the report command; metrics: the last iteration's, {} without one."""
        minutes, seconds = divmod(time.monotonic() - self._started, 60)
        print(f"  done in {minutes:.0f} min {seconds:.0f} s: {printable(str(self.run_dir / 'metrics.parquet'), MAX_LINE)}")
        for line in [*(self.task.summary(metrics) if metrics else []), *self._standstill()]:
            print(f"  {line}")
        kl = f"last KL(old || new) {console.nats(number(metrics, 'kl/old_exact'))}; " if "kl/old_exact" in metrics else ""
        report = f"rgpo-report results_dir={shell_word(self.settings.results_dir)} experiment={self.settings.name}"
        print(f"  {kl}`{report}` draws it", flush=True)

    def _standstill(self) -> list[str]:
        """A message if the policy had stopped changing by the end, judged by the stored rows, including earlier attempts'."""
        with reader.parquet(self.run_dir / "metrics.parquet") as file:
            table = file.read([name for name in STANDSTILL if name in file.schema_arrow.names], use_threads=False)
            unmeasured = np.full(file.metadata.num_rows, np.nan)
        columns = (np.array(table[name].to_pylist(), float) if name in table.column_names else unmeasured for name in STANDSTILL)
        sentence = standstill(*columns)
        return [sentence] if sentence else []
