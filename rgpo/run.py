"""rgpo-run: one experiment, or a sweep with -m."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rgpo.config import Job

HELP = """\
rgpo-run [-m] [key=value ...]     run one experiment, or with -m a sweep over comma-separated values

  rgpo-run algo=rgpo task=hopper
  rgpo-run -m algo=rgpo gate=sigmoid,sigmoid_log seed=1,2,3
  rgpo-run -m experiment=first_evidence

  algo=            {algo}
  task=            {task}
  gate=            {gate}
  gate@ref_gate=   a gate on the reference's ratio, joined by dual= {dual}
  advantage=       {advantage}
  penalty=         {penalty}
  update=          {update}
  experiment=      {experiment} (run with -m)

  seed num_iterations total_env_steps results_dir name num_threads
  plan=true        list the runs and their state, start none
  force=true       move existing run folders aside and start again
  --config-dir D   more options from your own folder D/gate, D/algo, ...
  --cfg job        print the whole configuration; --version; -h, --help

The same command again resumes what was interrupted and skips what is finished.
"""
HYDRA_FLAGS = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
    "--hydra-help",
    "--package",
    "-p",
    "--resolve",
)


def main() -> None:
    """Entry point; exit code 0 done, 1 a run failed, 2 a bad command line, 130 or 143 stopped by a signal."""
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        print(_help(), end="")
        return
    if "--version" in words:
        from rgpo import __version__

        print(f"rgpo {__version__}")
        return
    if any(word.split("=")[0] in HYDRA_FLAGS for word in words):
        _hydra_main()
        return
    sys.exit(_main(words))


def _main(words: list[str]) -> int:
    from rgpo.config import compose_jobs
    from rgpo.errors import ConfigError

    multirun, config_dir, overrides = _split(words)
    try:
        jobs = compose_jobs(overrides, multirun, config_dir)
        if jobs[0].config["plan"]:
            print(_plan(jobs))
            return 0
        for job in jobs:
            _prepare(job)
        os.environ.setdefault("OMP_NUM_THREADS", str(jobs[0].config["num_threads"]))
        _cache_compiled_code()
    except ConfigError as error:
        print(f"rgpo-run: {error}", file=sys.stderr)
        return 2
    if not multirun:
        return _start(jobs[0])
    options = ["--config-dir", config_dir] if config_dir else []
    sys.argv[1:] = ["-m", *options, *overrides]  # hydra's parser wants its options before the overrides
    _hydra_main()
    return _report_failures(jobs)


def _split(words: list[str]) -> tuple[bool, str | None, list[str]]:
    """-m, --config-dir and the overrides."""
    multirun, config_dir, overrides = False, None, []
    rest = iter(words)
    for word in rest:
        if word in ("-m", "--multirun"):
            multirun = True
        elif word in ("--config-dir", "-cd"):
            config_dir = next(rest, "")
        elif word.startswith("--config-dir="):
            config_dir = word.split("=", 1)[1]
        else:
            overrides.append(word)
    return multirun, config_dir, overrides


def _hydra_main() -> None:
    """Hand over to hydra: it composes each cell again and gives it to its launcher."""
    import hydra

    from rgpo.paths import conf_dir

    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(_sweep_job)()


def _sweep_job(composed: Any) -> None:
    """One cell of a sweep, in whatever process the launcher chose; a failure is kept in its folder and the sweep goes on."""
    from hydra.core.hydra_config import HydraConfig

    from rgpo.config import make_job

    job = make_job(composed, HydraConfig.get().runtime.choices, tuple(HydraConfig.get().overrides.task))
    os.environ.setdefault("OMP_NUM_THREADS", str(job.config["num_threads"]))
    _cache_compiled_code()
    code = _start(job)
    if code in (130, 143):
        sys.exit(code)


def _start(job: Job) -> int:
    """Run one job; its exit code."""
    from rgpo.config import build
    from rgpo.errors import ConfigError, NonFiniteError, OutOfMemory, StorageError
    from rgpo.runner import Interrupted, run

    command = shlex.join(["rgpo-run", *job.overrides])
    try:
        run(job.config, build(job.config), job.run_dir, job.config_hash, command)
    except Interrupted as stop:
        print(f"stopped; the same command goes on from here: {job.run_dir}", flush=True)
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except (ConfigError, NonFiniteError, OutOfMemory, StorageError) as error:
        print(f"rgpo-run: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        log = job.run_dir / "error.txt"
        print(
            f"rgpo-run: {job.run_dir.name}: {type(error).__name__}: {error} (traceback in {log})",
            file=sys.stderr,
            flush=True,
        )
        return 1
    return 0


def _prepare(job: Job) -> None:
    """Refuse a folder that cannot be written; with force=true move an old run aside."""
    from rgpo import runfolder
    from rgpo.errors import ConfigError

    with runfolder.lock(job.run_dir) as mine:
        if job.config["force"] and mine:
            try:
                aside = runfolder.move_aside(job.run_dir)
            except OSError as error:
                raise ConfigError(f"force=true: cannot move {job.run_dir} aside ({error.strerror}).") from error
            print(f"moved the earlier run to {aside}")


def _plan(jobs: list[Job]) -> str:
    from rgpo import runfolder
    from rgpo.console import table

    rows: list[tuple[str, ...]] = [
        (" ".join(job.overrides) or "(defaults)", runfolder.status(job.run_dir), str(job.run_dir)) for job in jobs
    ]
    return table(rows, ("run", "state", "folder")) + f"\n{len(rows)} run(s)"


def _report_failures(jobs: list[Job]) -> int:
    from rgpo import runfolder

    failed = [job for job in jobs if runfolder.status(job.run_dir) not in ("completed", "running")]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} runs are complete or running", flush=True)
    for job in failed:
        reason = runfolder.read_state(job.run_dir).get("reason")
        print(f"  {runfolder.status(job.run_dir)}: {' '.join(job.overrides)}: {reason} ({job.run_dir})", file=sys.stderr)
    return 1 if failed else 0


def _cache_compiled_code() -> None:
    """Keep torch's compiled code where it survives a reboot; must be set before torch is imported."""
    from rgpo.paths import cache_dir

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))


def _help() -> str:
    from rgpo.paths import conf_dir

    names = ("algo", "task", "gate", "dual", "advantage", "penalty", "update", "experiment")
    options = {}
    for group in names:
        files = sorted(file.stem for file in (conf_dir() / group).glob("*.yaml") if file.name[0] != "_")
        options[group] = " ".join(files)
    return HELP.format(**options)


if __name__ == "__main__":
    main()
