"""Hydra's launchers, modified so that losing a process costs only its run, and so that Ctrl-C prints no traceback.

The plugins raise the first error of any process and discard the other results; here, the error becomes the result of that run.
When one of its processes is killed, joblib's whole pool breaks; rgpo.cli.sweep restarts the runs that were in progress.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf, open_dict

if TYPE_CHECKING:
    from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher
    from hydra_plugins.hydra_ray_launcher.ray_launcher import RayLauncher
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

Cells = Sequence[Sequence[str]]
Lost = Callable[[], None]  # called as soon as a run's process is lost


def launch(engine: Launcher, cells: Cells, lost: Lost) -> list[JobReturn]:
    """The results of all cells in order; the result of a lost process is its error.

    Raises: joblib's error if its pool breaks; any engine's error if it cannot start.
    """
    plugin = type(engine).__module__.partition(".")[2].partition(".")[0]
    run = {"hydra_joblib_launcher": _joblib, "hydra_ray_launcher": _ray, "hydra_submitit_launcher": _submitit}.get(plugin)
    return list(engine.launch(cells, initial_job_idx=0)) if run is None else run(engine, cells, lost)


def unblock() -> None:
    """In a joblib worker: unblock signals, which end an idle process without a traceback."""
    from rgpo import interrupt

    interrupt.exit_at_once()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt.NUMBERS)


@contextmanager
def _blocked() -> Iterator[None]:
    """Block signals in this process; processes started in the meantime have them blocked from their first instruction."""
    from rgpo import interrupt

    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _joblib(engine: JoblibLauncher, cells: Cells, lost: Lost) -> list[JobReturn]:
    start_pool(int(engine.joblib["n_jobs"]))  # the plugin then reuses these processes
    return list(engine.launch(cells, initial_job_idx=0))


def start_pool(processes: int) -> None:
    """Start joblib's processes with signals blocked, since a signal during imports would make each of them print a traceback."""
    from multiprocessing import resource_tracker

    from joblib import Parallel, delayed, effective_n_jobs
    from joblib.externals.loky.backend import resource_tracker as its_own

    for tracker in (resource_tracker, its_own):
        tracker.ensure_running()  # first, because starting its process unblocks signals here
    with _blocked():
        Parallel(processes, backend="loky")(delayed(int)() for _ in range(effective_n_jobs(processes)))


def _ray(engine: RayLauncher, cells: Cells, lost: Lost) -> list[JobReturn]:
    """Same as hydra_ray_launcher._core.launch, except that it returns every result."""
    import ray
    from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray

    setup_globals()
    start_ray(engine.ray_cfg.init)
    pending: dict[object, int] = {}
    for number, cell in enumerate(cells):
        config = engine.hydra_context.config_loader.load_sweep_config(engine.config, list(cell))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_id_for_{number}", number
        remote, state = engine.ray_cfg.remote, Singleton.get_state()
        pending[launch_job_on_ray(engine.hydra_context, remote, config, engine.task_function, state)] = number
    found: dict[int, JobReturn] = {}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        found[pending.pop(done)] = _outcome(partial(ray.get, done), lost)
    return [found[number] for number in range(len(cells))]


def _submitit(engine: BaseSubmititLauncher, cells: Cells, lost: Lost) -> list[JobReturn]:
    """Same as hydra_submitit_launcher's BaseSubmititLauncher.launch, except that it returns every result."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    cluster, general = engine._EXECUTOR, set(OmegaConf.structured(BaseQueueConf))
    given = {key if key in general else f"{cluster}_{key}": value for key, value in engine.params.items()}
    first = {key: given.pop(key) for key in (f"{cluster}_max_num_timeout",) if key in given}
    executor = submitit.AutoExecutor(folder=given.pop("submitit_folder"), cluster=cluster, **first)
    executor.update_parameters(**given)
    state = Singleton.get_state()
    rows = [(list(cell), "hydra.sweep.dir", k, f"job_id_for_{k}", state) for k, cell in enumerate(cells)]
    jobs = executor.map_array(engine, *zip(*rows, strict=True))
    number = {job: k for k, job in enumerate(jobs)}
    found = {number[job]: _outcome(job.result, lost) for job in submitit.helpers.as_completed(jobs)}
    return [found[k] for k in range(len(cells))]


def _outcome(result: Callable[[], JobReturn], lost: Lost) -> JobReturn:
    try:
        return result()
    except Exception as error:  # the engine's error for a lost process
        lost()
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
