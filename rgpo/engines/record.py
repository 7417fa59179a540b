"""Record another framework's training as a run folder in our schema, so that the report can compare it with our own runs.

    record = RunRecord(engine="trl", task="gsm8k", algo="rgpo", seed=1, settings={"learning_rate": 1e-5}, num_iterations=100)
    record.start(); record.log(env_steps, metrics); record.finish()

One row is one logged step of the engine. The folder is named as by rgpo-run, with a hash of gates, penalty and settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import yaml

from rgpo import atomic, gates
from rgpo.cli.config import config_hash
from rgpo.engines.parts import AXES, GateParts
from rgpo.errors import ConfigError, require, shell_word
from rgpo.runtime import manifest, provenance, run_folder
from rgpo.runtime.code_digest import code_digest
from rgpo.runtime.metrics import MetricsWriter
from rgpo.runtime.own_metrics import glossary
from rgpo.runtime.parts import storing
from rgpo.runtime.reader import user_path
from rgpo.runtime.schema import is_list
from rgpo.runtime.settings import NAME


class RecordOptions(TypedDict, total=False):
    """Options of ``RunRecord`` other than engine, task and algo; callbacks fill in those that their engine knows."""

    seed: int
    settings: Mapping[str, object]
    num_iterations: int
    parts: GateParts | None
    results_dir: str
    name: str
    metrics: Mapping[str, object] | None
    force: bool


class RunRecord:
    """Writes results_dir/name/<task>-<algo>-s<seed>-<hash>/ while an engine trains; use it in one process only.

    settings: everything that affects the numbers, as plain values; included in the hash. parts: None for the engine's own loss.
    task and algo: names of your choice, by which the report groups runs.

    Raises: ConfigError if a name is not a valid folder name, a setting is not a plain value, or ``metrics`` is malformed.
    """

    def __init__(
        self,
        *,
        engine: str,
        task: str,
        algo: str,
        seed: int,
        settings: Mapping[str, object],
        num_iterations: int,
        parts: GateParts | None = None,
        results_dir: str = "results",
        name: str = "engines",
        metrics: Mapping[str, object] | None = None,
        force: bool = False,
    ) -> None:
        for key, value in (("task", task), ("algo", algo), ("name", name)):
            _check_name(key, value)
        self.engine, self.num_iterations, self.force = engine, num_iterations, force
        choices = {"task": task, "algo": algo, "scale": "none", "gate": _gate_name(parts)}
        self.config: dict[str, object] = {
            "name": name,
            "seed": seed,
            "results_dir": results_dir,
            "num_iterations": num_iterations,
            "total_env_steps": None,
            "algorithm": {"_target_": f"rgpo.engines.{engine}"},
            "engine": {"name": engine, "version": metadata.version(_package(engine)), "settings": _plain("settings", settings)},
            **({} if parts is None else {axis: _node(getattr(parts, axis)) for axis in AXES}),
            "choices": choices,
            "metrics": dict(metrics or {}),
        }
        self.parts = parts
        self.config_hash = config_hash({key: x for key, x in self.config.items() if key != "num_iterations"})
        folder = f"{task}-{algo}-s{seed}-{self.config_hash}"
        self.run_dir = user_path(results_dir) / name / folder
        self.columns = glossary(self.config)
        self._held = ExitStack()
        self._iteration = 0

    def start(self, iteration: int = 0) -> None:
        """Open the folder for a run that continues after an iteration (0 for a new run).

        Raises: ConfigError if the run is already complete, another process is writing it, or the folder is not writable.
        """
        run_folder.prepare(self.run_dir, self.force)
        mine = self._held.enter_context(run_folder.lock(self.run_dir))
        require(mine, "results_dir", self.run_dir, "another process writes this run; wait for it, or use another name.")
        complete = run_folder.settle(self.run_dir)
        require(not complete, "results_dir", self.run_dir, "the run is complete; use force=True, which moves it aside.")
        self._attempt = run_folder.last_attempt(self.run_dir) + 1
        run_folder.reopen(self.run_dir)
        self._state("running")
        facts = provenance.collect(
            self.run_dir.name,
            self.config_hash,
            " ".join(map(shell_word, sys.argv)),
            1,
            self._attempt,
            {} if self.parts is None else self.parts.describe(),
            provenance.with_earlier_code(self.run_dir, code_digest({}, f"rgpo.engines.{self.engine}")),
        )
        facts["versions"][_package(self.engine)] = metadata.version(_package(self.engine))
        text = yaml.safe_dump(provenance.redact_values(self.config), sort_keys=False)
        with atomic.storing(self.run_dir):
            atomic.write_text(self.run_dir / "config.yaml", text, fsync=True)
            atomic.write_text(self.run_dir / "provenance.json", json.dumps(facts, indent=1) + "\n", fsync=True)
        choices = self.config["choices"]
        assert isinstance(choices, dict)
        row = {"run_id": self.run_dir.name, "config_hash": self.config_hash, "git_sha": provenance.git_sha(facts), **choices}
        seed = self.config["seed"]
        assert isinstance(seed, int)
        found = {"config": text, "versions": json.dumps(facts["versions"])}
        self._writer = MetricsWriter(self.run_dir, row, seed, self._attempt, found, self.columns)
        self._writer.resume(iteration)
        self._iteration = iteration

    def log(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Add the next row; metrics that are neither in the glossary nor declared in ``metrics`` are dropped."""
        self._iteration += 1
        known = {key: float(x) for key, x in metrics.items() if key in self.columns and not is_list(key)}
        self._writer.log(self._iteration, env_steps, known)

    def flush(self) -> None:
        """Write all rows so far."""
        self._writer.flush()

    def finish(self) -> Path:
        """Join the rows and record completion; returns the folder.

        Raises: StorageError if a file cannot be written.
        """
        self.num_iterations = self._iteration
        self._writer.finish()
        with storing(self.run_dir):
            manifest.write(self.run_dir, self._attempt, self.num_iterations)
        self._state("completed")
        run_folder.tidy(self.run_dir)
        self._held.close()
        return self.run_dir

    def stop(self, reason: str) -> None:
        """Save the rows of an interrupted training."""
        self._writer.flush()
        self._state("interrupted", reason)
        self._held.close()

    def _state(self, status: str, reason: str | None = None) -> None:
        counts = {"attempt": self._attempt, "iteration": self._iteration, "num_iterations": self.num_iterations}
        run_folder.write_state(self.run_dir, status=status, **counts, reason=reason)


def _package(engine: str) -> str:
    return {"sb3": "stable-baselines3"}.get(engine, engine)


def _check_name(key: str, value: str) -> None:
    (allowed,) = NAME.values()
    allowed.check(key, value)


def _gate_name(parts: GateParts | None) -> str:
    """The gate's option, or its class name if it is not from an option."""
    if parts is None:
        return "none"
    choices = parts.config.get("choices")
    option = choices.get("gate") if isinstance(choices, Mapping) else None
    return str(option or type(parts.gate).__name__)


def _node(part: object) -> dict[str, object]:
    """A part as a configuration node: its class and parameters."""
    assert is_dataclass(part)
    knobs = {entry.name: getattr(part, entry.name) for entry in fields(part) if entry.init}
    name = type(part).__name__
    public = getattr(gates, name, None) is type(part) if name in gates.__all__ else False
    target = f"rgpo.gates.{name}" if public else f"{type(part).__module__}.{type(part).__qualname__}"
    return {"_target_": target, **{key: _node(x) if is_dataclass(x) else x for key, x in knobs.items()}}


def _plain(key: str, value: object) -> object:
    """Convert a value to plain yaml types.

    Raises: ConfigError if that is not possible.
    """
    if isinstance(value, Mapping):
        return {str(name): _plain(f"{key}.{name}", entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, entry) for entry in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"{key}={value}: is not a plain value; give numbers, texts, lists and dictionaries.")
