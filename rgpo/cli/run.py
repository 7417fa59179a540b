"""rgpo-run: one experiment, or a sweep with -m."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rgpo.cli.config import Job

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

  hydra/launcher=  joblib ray submitit_slurm (with -m: many runs at once)

  seed num_iterations total_env_steps results_dir name num_threads memory_gb
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
    from rgpo import distributed
    from rgpo.cli import sweep
    from rgpo.cli.config import compose_jobs
    from rgpo.errors import ConfigError, require
    from rgpo.runtime import run_folder

    multirun, config_dir, overrides = _split(words)
    try:
        distributed.start()
        size = distributed.world_size()
        require(not multirun or size == 1, "WORLD_SIZE", size, "-m starts runs of its own; give torchrun one run at a time.")
        jobs = compose_jobs(overrides, multirun, config_dir)
        if jobs[0].config["plan"]:
            print(_plan(jobs))
            return 0
        if multirun:
            return sweep.sweep(jobs, overrides, config_dir)
        if distributed.rank() == 0:
            run_folder.prepare(jobs[0].run_dir, jobs[0].config["force"])
    except ConfigError as error:
        distributed.tell(str(error), error)
        return 2
    return sweep.start(jobs[0])


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
    """Hand over to hydra, which answers its own flags."""
    import hydra

    from rgpo.paths import conf_dir

    hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(lambda _: None)()


def _plan(jobs: list[Job]) -> str:
    from rgpo.runtime import run_folder
    from rgpo.runtime.console import table

    rows: list[tuple[str, ...]] = []
    for job in jobs:
        words = " ".join(word for word in job.overrides if not word.startswith("plan="))
        rows.append((words or "(defaults)", run_folder.status(job.run_dir), str(job.run_dir)))
    return table(rows, ("run", "state", "folder")) + f"\n{len(rows)} run(s)"


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
