"""Start runs: one in this process, or a sweep on the engine of a launcher, with a list of the runs that failed."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra._internal.callbacks import Callbacks  # see cli.overrides
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from rgpo import distributed, interrupt
from rgpo.cli.config import Job, build, make_job
from rgpo.cli.overrides import hydra_on
from rgpo.cli.words import hydra_form, user_form
from rgpo.errors import EXPLAINED, MAX_LINE, ConfigError, EnvironmentFault, first_line, printable
from rgpo.paths import cache_dir
from rgpo.runtime import manifest, run_folder
from rgpo.runtime.resources import available_gb, jobs_that_fit, num_cpus
from rgpo.runtime.runner import run
from rgpo.runtime.signals import Interrupted

EXTRAS = {"joblib": "joblib", "ray": "ray", "submitit_slurm": "slurm", "submitit_local": "slurm"}
RAY_ANSWERS_WITHIN_S = 25  # with this process's own start, half a minute
_python_format = warnings.formatwarning
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


def start(job: Job) -> int:
    """Run one job in this process; its exit code: 0 done, 1 failed, 2 cannot run, 130 or 143 stopped by a signal."""
    gc.set_threshold(*gc.get_threshold()[:2], 100)  # imports create objects that stay: collecting them took 10 % of a start
    warnings.formatwarning = _format_warning
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))  # before torch is imported
    try:
        run(job.config, *build(job.config), job.run_dir, job.config_hash, job.command)
    except Interrupted as stop:
        print(f"stopped; the same command resumes the run: {printable(str(job.run_dir), MAX_LINE)}", flush=True)
        distributed.stop()
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except (ConfigError, *EXPLAINED) as error:
        where = f" (traceback in {job.run_dir / run_folder.ERROR})" if isinstance(error, EnvironmentFault) else ""
        distributed.report_error(f"{error}{where}", error)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        log = job.run_dir / "error.txt"
        distributed.report_error(f"{job.run_dir.name}: {type(error).__name__}: {error} (traceback in {log})", error)
        return 1
    distributed.stop()
    return 0


def _format_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning of rgpo's as its sentence, any other as Python prints it."""
    if category is UserWarning and "/rgpo/" in filename:
        return f"  {printable(str(message), MAX_LINE)}\n"
    return _python_format(message, category, filename, lineno, line)


def run_cell(composed: DictConfig) -> None:
    """One run of a sweep, in whatever process the engine chose; a failure is recorded in its folder and the sweep continues."""
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # an engine's worker may have started elsewhere
    import_from_current_directory()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider.startswith("hydra.searchpath")]
    with hydra_on(None) as composer:
        words = tuple(user_form(item) for item in composer.parse_hydra(list(hydra.overrides.task)))
    code = start(make_job(composed, hydra.runtime.choices, words, config_dir=folders[0] if folders else None))
    if code in (130, 143):
        sys.exit(code)


def sweep(jobs: list[Job], words: list[str], config_dir: str | None) -> int:
    """Run every job that is not complete on the chosen engine; returns the exit code. words: those of the command line.

    Raises: ConfigError if the engine is not installed or cannot be reached.
    """
    num_jobs = len(jobs)
    jobs = list({job.run_dir: job for job in jobs}.values())
    if len(jobs) < num_jobs:
        print(f"{num_jobs} jobs map to {len(jobs)} distinct runs (num_threads and the like do not change the run id)", flush=True)
    with hydra_on(config_dir) as composer:
        own = [word for word, item in zip(words, composer.parse(words), strict=True) if item.is_hydra_override()]
        config = composer.whole([*own, *jobs[0].overrides])
        _refuse_missing_engine(config)
        _warn_of_crowding(config, len(jobs))
        for job in jobs:
            run_folder.prepare(job.run_dir, job.force)
        left = [job for job in jobs if not _is_complete(job.run_dir)]
        if len(left) < len(jobs):
            print(f"{len(jobs) - len(left)} of {len(jobs)} runs already complete, skipped (force=true repeats them)", flush=True)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks(config))
        engine = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_cell, config=config)
        returned: Sequence[JobReturn] = []
        code = 0
        try:
            with interrupt.Raising():
                cells = [[hydra_form(word) for word in job.overrides] for job in left]
                returned = engine.launch(cells, initial_job_idx=0) if cells else []
        except KeyboardInterrupt:
            code = 130
        except SystemExit as stop:  # a run was stopped by a signal
            code = int(stop.code or 0)
        except Exception as error:  # whatever an engine raises when it loses a worker
            why = f"{type(error).__name__}: {printable(first_line(error))}"
            print(f"rgpo-run: {_engine(config)} stopped ({why})", file=sys.stderr)
    failed = _report(jobs, {job.run_dir: why for job, end in zip(left, returned, strict=False) if (why := _failure(end))})
    return code or failed


def _is_complete(run_dir: Path) -> bool:
    """True if a run has ended as planned and its rows are whole; one that is not is repeated or resumed."""
    return run_folder.status(run_dir) == "completed" and not manifest.problems(run_dir, run_folder.ROWS)


def _failure(end: JobReturn) -> str:
    """The error of a job that the engine reports as failed; "" for any other."""
    try:
        _ = end.return_value
    except Exception as error:  # the job's own
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
    """Connect once in a process that can be ended, since Ray itself waits for minutes.

    Raises: ConfigError if nothing answers at the address.
    """
    key = f"hydra.launcher.ray.init.address={address}"
    remedy = "give the HOST:PORT that `ray start --head` printed, or null to start Ray here."
    try:
        subprocess.run(  # noqa: S603  # this Python with a program of ours; the address is an argument
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
    """Warn if more runs at a time are set than CPUs or memory can hold; Ray and SLURM see to that themselves."""
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


def _report(jobs: list[Job], broken: Mapping[Path, str]) -> int:
    """Print how many runs are complete and, for every other one that was started, the reason and the log; 1 if there is any."""
    states = {job.run_dir: run_folder.status(job.run_dir) for job in jobs}
    count = Counter(states.values())
    others = [f", {count[state]} {text}" for state, text in (("running", "running"), ("missing", "queued")) if count[state]]
    print(f"{count['completed']} of {len(jobs)} runs are complete{''.join(others)}", flush=True)
    for job in jobs:
        state, log = states[job.run_dir], job.run_dir / "error.txt"
        if state in ("failed", "interrupted") or job.run_dir in broken:
            killed = "its process was killed; repeat the command to resume"
            reason = run_folder.read_state(job.run_dir).get("reason") or broken.get(job.run_dir, killed)
            where = f"log: {log}" if state == "failed" and log.exists() else f"folder: {job.run_dir}"
            line = f"{state}: {' '.join(job.overrides)}: {printable(reason)} ({where})"
            print(f"  {printable(line, MAX_LINE)}", file=sys.stderr)
    return int(count["completed"] + count["running"] < len(jobs))
