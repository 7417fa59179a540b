"""The Python API: start or resume a run, load one from its folder, or read all runs into one table."""

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

_composing = threading.Lock()  # hydra's state is global


def run(*words: str, config_dir: str | os.PathLike[str] | None = None) -> Run:
    """Run or resume an experiment in this process, given the arguments of rgpo-run; a finished run is not repeated.

    config_dir: a folder with your own options (gate/, algo/, ...). The classes they name under _target_ must be importable, or be
    defined in the notebook or script itself (``__main__.X``). Progress is printed. Signal handlers and the thread counts of torch
    and BLAS are restored afterwards. On Ctrl-C or SIGTERM (main thread only), the current iteration finishes and a checkpoint is
    saved.

    Raises: ConfigError if the arguments do not describe a valid run; NonFiniteError, OutOfMemory, StorageError or any error from
    the task or the algorithm, all of which are recorded in state.json; KeyboardInterrupt after Ctrl-C; SystemExit after SIGTERM.
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
    """Load the run in a folder results/<name>/<task>-<algo>-s<seed>-<hash>.

    Raises: ConfigError if the folder does not contain a run.
    """
    return Run(folder)


def results(folder: str | os.PathLike[str], columns: Sequence[str] = ()) -> DataFrame:
    """One row per iteration of every run, finished or not, in a results folder or in a single experiment's folder.

    The columns are experiment, run_id, task, scale, algo, gate, seed and status, then the config keys listed in columns
    (such as ``update.lr``), then those of ``Run.metrics``. Names from earlier versions are replaced by the current ones. A run
    that cannot be read is skipped with a warning.

    Raises: ConfigError if there are no readable runs, or if a key in columns is in no run's config.
    """
    import pandas as pd

    from rgpo.cli.words import flat

    root = user_path(os.fspath(folder))
    frames: list[DataFrame] = []
    facts: list[dict[str, object]] = []  # one entry per row
    known: set[str] = set()
    for path in _run_folders(root):
        try:
            one = Run(path)
            metrics = one.metrics
        except Exception as error:  # a run that cannot be read must not affect the others
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
    """A run folder: status, metrics and samples are read from disk on each access; task, policy and algorithm are cached."""

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
        """The current status: running, completed, failed, interrupted or missing."""
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

        Raises: ConfigError if there are no readable rows, or if the files of a finished run do not match its manifest.
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
        """Completions of held-out prompts so far, with the columns of runtime.schema.SAMPLES and one per reward term.

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
        """The task, restored from the last checkpoint.

        Raises: ConfigError if there is no readable checkpoint.
        """
        return self._parts.task

    @property
    def policy(self) -> TrainedPolicy:
        """The trained policy; ``run.policy(observation)`` returns an action.

        Raises: ConfigError if there is neither a policy/ folder nor a readable checkpoint.
        """
        if self._stored_actor is None:
            _ = self._parts
        return TrainedPolicy(self)

    @cached_property
    def _stored_actor(self) -> Actor | None:
        return stored_actor(self.folder)

    def _actor(self) -> Actor:
        """The policy as a function: loaded from policy/, unless the parts have been restored from a checkpoint."""
        if "_parts" not in vars(self) and self._stored_actor is not None:
            return self._stored_actor
        return restored_actor(self._run, lambda: self._parts)

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm, restored from the last checkpoint.

        Raises: ConfigError if there is no readable checkpoint.
        """
        return self._parts.algorithm

    def evaluate(self, num_episodes: int | None = None) -> dict[str, float]:
        """Evaluate as during training: deterministic episodes with the current normalizers, or completions of held-out prompts.

        Episodes always use the same seeds. num_episodes replaces task.num_eval_episodes.

        Raises: ConfigError if there is no readable checkpoint, or if num_episodes is given for a task without episodes.
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
        """Task, policy and algorithm in the state from which a resumed run would continue."""
        from rgpo.cli.stored_run import restore_parts

        return restore_parts(self._run)


class TrainedPolicy:
    """A run's policy, callable on raw numpy observations; other attributes come from the policy in the last checkpoint.

    For a finished run of a control task, calls need only the policy/ folder, neither torch nor a checkpoint. Once an attribute
    has been accessed, calls use the restored policy in its current state.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, observation: object, *, deterministic: bool = True, rng: np.random.Generator | None = None) -> EnvAction:
        """The action for one environment observation, or the actions (N, ...) for a batch (N, ...), within the action space.

        deterministic: return the mode of the distribution; otherwise sample, using rng or the policy's own generator.

        Raises: ValueError if an observation has the wrong shape or is not finite; ConfigError if the files are damaged, or if the
        policy is a language model.
        """
        return self._run._actor()(observation, deterministic=deterministic, rng=rng)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run._parts.policy, name)


def _run_folders(root: Path) -> Iterator[Path]:
    """Folders of all runs that have started, in one experiment or in all experiments below root."""
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
    """Use the same cache of compiled code as the command line."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    unset = name not in os.environ
    os.environ.setdefault(name, str(cache_dir() / "inductor"))
    try:
        yield
    finally:
        if unset:
            os.environ.pop(name, None)
