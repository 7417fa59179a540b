"""Runs a sweep with one of hydra's launchers and reports the runs that failed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.callbacks import Callbacks  # see cli.overrides
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from rgpo import interrupt
from rgpo.cli import engines, outcome
from rgpo.cli.config import Job, make_job, num_alike_of
from rgpo.cli.overrides import Composer, hydra_on
from rgpo.cli.plan import planned
from rgpo.cli.words import hydra_form, user_form
from rgpo.errors import MAX_LINE, ConfigError, first_line, printable
from rgpo.runtime import manifest, run_folder
from rgpo.runtime.resources import available_gb, jobs_that_fit, num_cpus
from rgpo.runtime.signals import QUEUE_SIGNALS

Start = Callable[[Job, int], int]  # (job, number of runs that share its compiled code) -> exit code
EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}
RAY_ANSWERS_WITHIN_S = 25  # half a minute in all, with the startup time of this process
CONNECT = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


def import_from_current_directory() -> None:
    """Put the current directory first on the import path, as `python -m` does.

    Raises: ConfigError if it no longer exists.
    """
    try:
        here = str(Path.cwd())
    except OSError as error:
        raise ConfigError(f"current directory: cannot be read ({error.strerror}); change to one that exists.") from error
    if here not in sys.path:
        sys.path.insert(0, here)


@dataclass(frozen=True)
class Cell:
    """Callable that executes one run of a sweep in the engine's worker; a failure is recorded in the run's folder."""

    start: Start
    pid: int  # process id of the rgpo-run command
    stop_file: Path | None  # with on_failure=stop: no run starts once this file exists
    tally: outcome.Tally
    alike: Mapping[str, int] = field(default_factory=dict)  # folder name -> number of runs that differ only in their seed

    def __call__(self, composed: DictConfig) -> None:
        """Make a job from its composed configuration and run it."""
        if os.getpid() != self.pid:
            engines.unblock()
        if self.stop_file is not None and self.stop_file.exists():
            return
        hydra = HydraConfig.get()
        os.chdir(hydra.runtime.cwd)  # the worker may have started in another directory
        import_from_current_directory()
        folders = [source.path for source in hydra.runtime.config_sources if source.provider.startswith("hydra.searchpath")]
        with hydra_on(None) as composer:
            words = tuple(user_form(item) for item in composer.parse_hydra(list(hydra.overrides.task)))
        job = make_job(composed, hydra.runtime.choices, words, config_dir=folders[0] if folders else None)
        code = self.start(job, self.alike.get(job.run_dir.name, 1))
        if code in (0, 1, 2):
            print(self.tally.add(failed=code > 0), flush=True)
        if code in (1, 2):
            self.fail()
        elif code:
            if code - 128 in QUEUE_SIGNALS:
                signal.raise_signal(code - 128)  # submitit requeues the job, which then resumes from its checkpoint
            sys.exit(code)

    def fail(self) -> None:
        """With on_failure=stop, prevent further runs from starting."""
        if self.stop_file is not None:
            self.stop_file.touch()


def sweep(jobs: list[Job], words: list[str], config_dir: str | None, start: Start) -> int:
    """Run every incomplete job on the chosen engine; words: the command line's arguments. Returns the exit code.

    Raises: ConfigError if the engine is not installed or cannot be reached.
    """
    num_jobs = len(jobs)
    jobs = list({job.run_dir: job for job in jobs}.values())
    if len(jobs) < num_jobs:
        print(f"{num_jobs} jobs map to {len(jobs)} distinct runs (num_threads and the like do not change the run id)", flush=True)
    with hydra_on(config_dir) as composer:
        launcher = Launcher(composer, composer.unfolded(words), jobs, start)
        for job in jobs:
            run_folder.prepare(job.run_dir, job.force)
        earlier = {} if jobs[0].force else {run.job.run_dir: run.folder for run in planned(jobs) if run.folder != run.job.run_dir}
        left = [job for job in jobs if job.run_dir not in earlier and not _is_complete(job.run_dir)]
        if len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} runs already complete, skipped (force=true repeats them)", flush=True)
            for folder in (earlier.get(job.run_dir, job.run_dir) for job in jobs if job not in left):
                for why in manifest.problems(folder):
                    print(f"  {printable(f'{folder}: {why}', MAX_LINE)}", file=sys.stderr)
        code, broken = launcher.run(left)
    failed = outcome.show(jobs, broken, earlier)
    return code or failed


class Launcher:
    """The engine chosen on the command line; if a run's process is lost, the run is restarted once, unless on_failure=stop."""

    def __init__(self, composer: Composer, words: Sequence[str], jobs: Sequence[Job], start: Start) -> None:
        """Raises: ConfigError if the engine is not installed or cannot be reached."""
        own = [word for word, item in zip(words, composer.parse(list(words)), strict=True) if item.is_hydra_override()]
        self.config = composer.whole([*own, *jobs[0].overrides])
        self.start = start
        self.stops = jobs[0].config["on_failure"] == "stop"
        _refuse_missing_engine(self.config)
        _warn_of_crowding(self.config, len(jobs))
        if self.stops and OmegaConf.select(self.config, "hydra.launcher.ray.remote.max_retries") is not None:
            self.config.hydra.launcher.ray.remote.max_retries = 0
        self.context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks(self.config))

    def run(self, jobs: Sequence[Job]) -> tuple[int, dict[Path, str]]:
        """Run the jobs; returns the exit code (nonzero only after a signal) and run folder -> error of its lost process."""
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        name = f"{os.uname().nodename}-{os.getpid()}"
        stop_file = folder / f"stop-{name}" if self.stops else None
        tally = outcome.Tally(folder / f"tally-{name}", len(jobs), time.time())
        try:
            with interrupt.Raising():
                return 0, self._rounds(jobs, Cell(self.start, os.getpid(), stop_file, tally, num_alike_of(jobs)))
        except KeyboardInterrupt:
            return 130, {}
        except SystemExit as stop:  # a signal stopped a run
            return int(stop.code or 0), {}
        finally:
            for path in (stop_file, tally.path):
                if path is not None:
                    path.unlink(missing_ok=True)

    def _rounds(self, jobs: Sequence[Job], cell: Cell) -> dict[Path, str]:
        before = {job.run_dir: run_folder.last_attempt(job.run_dir) for job in jobs}
        broken: dict[Path, str] = {}
        groups = [list(jobs)] if jobs else []
        while groups:
            group = groups.pop(0)
            try:
                ends, whole = self._launch(group, cell), True
                broken |= {job.run_dir: why for job, end in zip(group, ends, strict=True) if (why := _failure(end))}
            except Exception as error:  # engines raise various errors when they lose a worker
                whole = False
                broken |= dict.fromkeys((job.run_dir for job in group), printable(first_line(error)))
                print(
                    f"rgpo-run: {_engine(self.config)} stopped ({type(error).__name__}: {broken[group[0].run_dir]})",
                    file=sys.stderr,
                )
            if self.stops:
                break
            starts = {job.run_dir: run_folder.last_attempt(job.run_dir) - before[job.run_dir] for job in group}
            lost = [job for job in group if starts[job.run_dir] and _is_lost(job.run_dir)]
            again = [job for job in lost if starts[job.run_dir] == 1]
            waiting = [job for job in group if not starts[job.run_dir]] if not whole and lost else []
            groups += [again] if whole and again else [[job] for job in again]  # one run broke the pool, so retry each separately
            groups += [waiting] if waiting else []
        return {folder: why for folder, why in broken.items() if _is_lost(folder)}

    def _launch(self, jobs: Sequence[Job], cell: Cell) -> Sequence[JobReturn]:
        engine = Plugins.instance().instantiate_launcher(hydra_context=self.context, task_function=cell, config=self.config)
        return engines.launch(engine, [[hydra_form(word) for word in job.overrides] for job in jobs], cell.fail)


def _is_complete(run_dir: Path) -> bool:
    """True if a run is complete and its rows are undamaged; otherwise it is repeated or resumed."""
    return run_folder.status(run_dir) == "completed" and not manifest.problems(run_dir, run_folder.ROWS)


def _is_lost(run_dir: Path) -> bool:
    """True if a run's process was killed: state.json still has status running, but no process holds the lock."""
    return run_folder.read_state(run_dir).get("status") == "running" and not run_folder.is_locked(run_dir)


def _failure(end: JobReturn) -> str:
    """The error of a job that the engine reports as failed, else ""."""
    try:
        _ = end.return_value
    except Exception as error:  # the job's own error
        return str(error) or type(error).__name__
    return ""


def _engine(config: DictConfig) -> str:
    return f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}"


def _refuse_missing_engine(config: DictConfig) -> None:
    name = config.hydra.runtime.choices["hydra/launcher"]
    module = str(config.hydra.launcher._target_).rpartition(".")[0]
    try:
        importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install 'rgpo[{EXTRAS[name]}]'" if name in EXTRAS else "install its package"
        raise ConfigError(f"{_engine(config)}: is not installed, {remedy}.") from error
    address = OmegaConf.select(config, "hydra.launcher.ray.init.address")
    if address is not None:
        _refuse_silent_ray(str(address))


def _refuse_silent_ray(address: str) -> None:
    """Test the connection in a subprocess with a timeout, since Ray itself would wait for minutes.

    Raises: ConfigError if no Ray cluster answers at the address.
    """
    key = f"hydra.launcher.ray.init.address={address}"
    remedy = "give the HOST:PORT that `ray start --head` printed, or null to start Ray here."
    try:
        subprocess.run(  # noqa: S603  # runs our own program with this Python; the address is only an argument
            [sys.executable, "-c", CONNECT, address], check=True, capture_output=True, timeout=RAY_ANSWERS_WITHIN_S
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{key}: no answer within {RAY_ANSWERS_WITHIN_S} s, {remedy}") from error
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace")
        lines = output.strip().splitlines()
        if "AuthToken" in output:
            remedy = (
                "it needs the token of its head's ~/.ray/auth_token: export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN elsewhere."
            )
        raise ConfigError(f"{key}: cannot be reached ({lines[-1] if lines else 'no reason given'}); {remedy}") from error


def _warn_of_crowding(config: DictConfig, num_jobs: int) -> None:
    """Warn if n_jobs exceeds what CPUs or memory can hold; Ray and SLURM limit this themselves."""
    asked = OmegaConf.select(config, "hydra.launcher.n_jobs")
    if asked is None:
        return
    at_a_time = min(num_jobs, asked if asked > 0 else num_cpus())
    threads, memory = config.num_threads, config.memory_gb
    remedy = f"set hydra.launcher.n_jobs={jobs_that_fit(threads, memory)}."
    if at_a_time * memory > available_gb():
        need = f"{at_a_time} runs at a time x memory_gb={memory} = {at_a_time * memory:g} GB"
        print(f"rgpo-run: warning: {need}, but {available_gb():.1f} GB are free; {remedy}", file=sys.stderr)
    if at_a_time * threads > num_cpus():
        need = f"{at_a_time} runs at a time x num_threads={threads}"
        print(f"rgpo-run: warning: {need} share {num_cpus()} CPUs and slow each other down; {remedy}", file=sys.stderr)
