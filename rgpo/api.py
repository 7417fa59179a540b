"""Runs from Python: start or resume one, load one from its folder, read all of them as one table."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rgpo import distributed
from rgpo.cli.stored_run import Parts, open_run, restored_actor, stored_actor
from rgpo.errors import ConfigError, close_matches, require
from rgpo.paths import cache_dir
from rgpo.report.read import rows
from rgpo.report.read.load import CHECKED, queued, run_folders
from rgpo.runtime import manifest, run_folder
from rgpo.runtime.own_metrics import glossary, sample_columns
from rgpo.runtime.reader import Unreadable, printable, user_path
from rgpo.runtime.resources import compute_threads, limited_threads
from rgpo.runtime.schema import SAMPLES
from rgpo.runtime.settings import Settings

if TYPE_CHECKING:
    from pandas import DataFrame

    from rgpo.control.actions import EnvAction
    from rgpo.control.actor import Actor
    from rgpo.learning.types import Algorithm, Task

_composing = threading.Lock()  # hydra has one global state


def run(*words: str, config_dir: str | os.PathLike[str] | None = None) -> Run:
    """Run or resume the experiment that rgpo-run's words describe, in this process; a finished one is not repeated.

    config_dir: a folder with options of your own, gate/, algo/ and so on. Classes that they name by _target_ are imported as any
    module, or from a notebook as ``__main__.X``. Progress is printed. Threads of torch and BLAS and signal handlers are restored
    afterwards. On Ctrl-C or SIGTERM, which only the main thread receives, the current iteration ends and a checkpoint is saved.

    Raises: ConfigError if the words cannot run; NonFiniteError, OutOfMemory, StorageError or any error of the task or the
    algorithm, which state.json records; KeyboardInterrupt after Ctrl-C; SystemExit after SIGTERM.
    """
    from rgpo.cli.config import build, compose_jobs
    from rgpo.runtime import runner
    from rgpo.runtime.signals import Interrupted

    size = distributed.world_size()
    require(size == 1, "WORLD_SIZE", size, "rgpo.run works in one process; start rgpo-run with torchrun.")
    with _composing:
        (job,) = compose_jobs(list(words), multirun=False, config_dir=None if config_dir is None else os.fspath(config_dir))
    require(not job.plan, "plan", "true", "lists runs on the command line; leave it out.")
    run_folder.prepare(job.run_dir, job.force)
    try:
        with _compiler_cache():
            runner.run(job.config, *build(job.config), job.run_dir, job.config_hash, job.command)
    except Interrupted as stop:
        print(f"stopped; the same call resumes the run: {job.run_dir}", flush=True)
        raise (KeyboardInterrupt if stop.exit_code == 130 else SystemExit(stop.exit_code)) from stop
    return Run(job.run_dir)


def load(folder: str | os.PathLike[str]) -> Run:
    """The run in a folder results/<name>/<task>-<algo>-s<seed>-<hash>.

    Raises: ConfigError if the folder holds no run.
    """
    return Run(folder)


def results(folder: str | os.PathLike[str], columns: Sequence[str] = ()) -> DataFrame:
    """One row per iteration of every run below a results folder, finished or running, or below one experiment in it.

    In front are experiment, run_id, task, scale, algo, gate, seed and status, then the config keys named in columns
    (``update.lr``), then the columns of ``Run.metrics``. Names of earlier versions are replaced by present ones. A run that
    cannot be read is left out with a warning.

    Raises: ConfigError if there is no run, or no run has a key in columns.
    """
    import pandas as pd

    from rgpo.cli.words import flat

    root = user_path(os.fspath(folder))
    frames: list[DataFrame] = []
    facts: list[dict[str, object]] = []  # of each row
    known: set[str] = set()
    for path in _run_folders(root):
        try:
            one = Run(path)
            metrics = one.metrics
        except Exception as error:  # whatever is odd in a run costs this run alone
            odd = f"{path}: {type(error).__name__}: {printable(str(error))}."
            warnings.warn(f"{error if isinstance(error, ConfigError) else odd} The run is left out.", stacklevel=2)
            continue
        config = flat(one.config) if columns else {}
        known |= set(config)
        facts += [{**one.identity, **{key: config.get(key) for key in columns}}] * len(metrics)
        frames.append(metrics)
    if not frames:
        raise ConfigError(f"{root}: contains no run that can be read; run rgpo-run first, or give another folder.")
    for key in columns:
        require(key in known, "columns", key, f"no run has such a config key.{close_matches(key, known)}")
    return pd.concat([pd.DataFrame(facts), pd.concat(frames, ignore_index=True)], axis=1)


class Run:
    """A run, by its folder: files are read anew at each use; task, policy and algorithm are made at their first use."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = user_path(os.fspath(folder)).absolute()
        self._run = open_run(self.folder)
        self.config = self._run.config

    def __repr__(self) -> str:
        state = run_folder.read_state(self.folder)
        progress = f"iteration {state.get('iteration', 0)} of {state.get('num_iterations', '?')}"
        return f"Run({str(self.folder)!r}: {self.status}, {progress})"

    @property
    def status(self) -> str:
        """One of running, completed, failed, interrupted and missing, at present."""
        return run_folder.status(self.folder)

    @property
    def identity(self) -> dict[str, object]:
        """Experiment, run_id, task, scale, algo, gate, seed and status."""
        choices = cast(Mapping[str, object], self.config["choices"])
        options = {group: choices.get(group) or "none" for group in ("task", "scale", "algo", "gate")}
        names = {"experiment": self.folder.parent.name, "run_id": self.folder.name}
        return {**names, **options, "seed": self.config["seed"], "status": self.status}

    @property
    def metrics(self) -> DataFrame:
        """One row per iteration so far: attempt, iteration, env_steps and every metric that was measured.

        Metrics under epoch/ are arrays with one entry per epoch.

        Raises: ConfigError if there are no rows that can be read, or a finished run's files do not match its manifest.
        """
        import pandas as pd

        try:
            if damaged := manifest.problems(self.folder, CHECKED):
                raise Unreadable("; ".join(damaged))
            names = glossary(self.config)
            found = rows.read(self.folder, names)
            rows.require_own(found, self._run.stored)
        except (Unreadable, ConfigError) as error:
            raise ConfigError(f"{self.folder}: {str(error).rstrip('.')}.") from error
        for problem in found.problems:
            warnings.warn(f"{self.folder}: {problem}.", stacklevel=2)
        counts = {name: found.columns[name].astype(np.int64) for name in rows.INDEX_COLUMNS}
        measured = {name: found.columns[name] for name in names if name in found.columns}
        measured = {name: values for name, values in measured.items() if not np.isnan(values).all()}
        return pd.DataFrame({**counts, **{name: list(x) if x.ndim > 1 else x for name, x in measured.items()}})

    @property
    def samples(self) -> DataFrame:
        """Completions of held-out prompts so far, with the columns of runtime.schema.SAMPLES and the terms of the reward.

        Raises: ConfigError if a file cannot be read.
        """
        import pandas as pd

        try:
            terms = {name: float for name in sample_columns(self.config) if name not in SAMPLES}
            found = rows.read_samples(self.folder, rows.SAMPLE_COLUMNS | terms)
        except Unreadable as error:
            raise ConfigError(f"{self.folder}: {error}.") from error
        return pd.DataFrame(found, columns=[*SAMPLES, *terms])

    @property
    def task(self) -> Task:
        """The task, with the state of the last checkpoint.

        Raises: ConfigError if there is no checkpoint that can be read.
        """
        return self._parts.task

    @property
    def policy(self) -> TrainedPolicy:
        """The policy; ``run.policy(observation)`` acts.

        Raises: ConfigError if there is neither policy/ nor a checkpoint that can be read.
        """
        if self._stored_actor is None:
            _ = self._parts
        return TrainedPolicy(self)

    @cached_property
    def _stored_actor(self) -> Actor | None:
        return stored_actor(self.folder)

    def _actor(self) -> Actor:
        """The policy as a function: of policy/, or of the parts if they were restored."""
        if "_parts" not in vars(self) and self._stored_actor is not None:
            return self._stored_actor
        return restored_actor(self._run, lambda: self._parts)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm, with the state of the last checkpoint.

        Raises: ConfigError if there is no checkpoint that can be read.
        """
        return self._parts.algorithm

    def evaluate(self, num_episodes: int | None = None) -> dict[str, float]:
        """The evaluation that runs do: deterministic episodes with the present normalizers, or completions of held-out prompts.

        Episodes always start from the same seeds. num_episodes replaces task.num_eval_episodes.

        Raises: ConfigError if there is no checkpoint that can be read, or a number of episodes for a task that has none.
        """
        task = self.task if num_episodes is None else self._with_episodes(num_episodes)
        with limited_threads(compute_threads(task, Settings.of(self.config).num_threads)):
            return task.evaluate(self._parts.policy)

    def _with_episodes(self, num_episodes: int) -> Task:
        from rgpo.cli.config import build
        from rgpo.runtime.session import seeds_of

        node = cast(Mapping[str, object], self.config["task"])
        has_episodes = "num_eval_episodes" in node
        require(has_episodes, "num_episodes", num_episodes, "this task has no evaluation episodes; leave it out.")
        task, algorithm = build(self.config | {"task": {**node, "num_eval_episodes": num_episodes}})
        task.setup(seeds_of(Settings.of(self.config).seed)[0], algorithm.requirements)
        task.load_state_dict(self.task.state_dict())
        return task

    @cached_property
    def _parts(self) -> Parts:
        """The parts as a resumed run would have them."""
        from rgpo.cli.stored_run import restore_parts

        return restore_parts(self._run)


class TrainedPolicy:
    """A run's policy: called, a function of raw observations in numpy; its other attributes are those of the last checkpoint.

    After a finished run on a control task a call needs policy/ alone, neither torch nor a checkpoint. Once attributes were used,
    it acts as they are now.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, observation: object, *, deterministic: bool = True, rng: np.random.Generator | None = None) -> EnvAction:
        """Action of one observation of the environment, or actions (N, ...) of a batch (N, ...), within the action space.

        deterministic: the mode of the distribution; else a draw, with rng or a generator of the policy's own.

        Raises: ValueError for observations of another shape, or that are not finite; ConfigError if the files are damaged, or for
        a language model.
        """
        return self._run._actor()(observation, deterministic=deterministic, rng=rng)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run._parts.policy, name)


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders of runs that were started, of one experiment or of all experiments below root."""
    try:
        if not root.is_dir():
            raise ConfigError(f"{root}: {'is a file' if root.exists() else 'is no folder'}; give the folder of your results.")
        below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{root}: cannot be read ({error.strerror}); give the folder of your results.") from error
    for parent in [root, *below]:
        try:
            found = run_folders(parent)
        except Unreadable as error:
            warnings.warn(f"{parent}: {error}. It is left out.", stacklevel=3)
            continue
        for path in found:
            if not queued(path):
                yield path


@contextmanager
def _compiler_cache() -> Iterator[None]:
    """Keep compiled steps where the command line does."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    unset = name not in os.environ
    os.environ.setdefault(name, str(cache_dir() / "inductor"))
    try:
        yield
    finally:
        if unset:
            os.environ.pop(name, None)
