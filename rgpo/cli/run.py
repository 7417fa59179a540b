"""rgpo-run: run one experiment, or a sweep with -m."""

from __future__ import annotations

import sys
import warnings

from rgpo import interrupt
from rgpo.leaving import run_program

TYPE_CHECKING = False  # not imported from typing, which would delay interrupt.exit_at_once()
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rgpo.cli.config import Job

_python_format = warnings.formatwarning


def main() -> None:
    """Entry point; exit codes: 0 done, 1 a run failed, 2 invalid command line, 130 or 143 stopped by a signal."""
    interrupt.exit_at_once()
    words = sys.argv[1:]
    if not words or any(word in ("-h", "--help") for word in words):
        from rgpo.cli import help

        sys.exit(help.show(words))
    if "--version" in words:
        from rgpo.version import __version__

        print(f"rgpo {__version__}")
        return
    job_words = _without_cfg_job(words)
    from rgpo.errors import printable
    from rgpo.runtime.streams import tolerant_output

    with tolerant_output():
        try:
            code = _main(words) if job_words is None else _print_config(job_words)
        except OSError as error:  # a problem of the machine, such as too few file descriptors
            print(f"rgpo-run: {printable(str(error))}", file=sys.stderr)
            code = 1
    sys.exit(code)


def _main(words: list[str]) -> int:
    from rgpo import distributed
    from rgpo.cli import sweep
    from rgpo.cli.config import compose_jobs
    from rgpo.errors import ConfigError, require
    from rgpo.runtime import run_folder

    try:
        sweep.import_from_current_directory()
        multirun, config_dir, overrides = _split(words)
        distributed.start()
        size = distributed.world_size()
        require(not multirun or size == 1, "WORLD_SIZE", size, "-m starts runs of its own; give torchrun one run at a time.")
        if multirun and (code := _tuned(overrides, config_dir)) is not None:
            return code
        jobs = compose_jobs(overrides, multirun, config_dir)
        if jobs[0].plan:
            from rgpo.cli import plan

            print(plan.describe(jobs))
            return 0
        if multirun:
            return sweep.sweep(jobs, overrides, config_dir, start)
        if distributed.rank() == 0:
            run_folder.prepare(jobs[0].run_dir, jobs[0].force)
    except ConfigError as error:
        distributed.report_error(str(error), error)
        return 2
    return start(jobs[0])


def start(job: Job, num_sharing: int = 1) -> int:
    """Run one job in this process; returns the exit code: 0 done, 1 failed, 2 cannot run, 130 or 143 stopped by a signal.

    num_sharing: number of runs in the sweep, this one included, that can share its compiled code.
    """
    import gc
    import os

    from rgpo import distributed
    from rgpo.cli.build import build
    from rgpo.errors import EXPLAINED, MAX_LINE, ConfigError, EnvironmentFault, printable
    from rgpo.learning.alike import num_alike
    from rgpo.paths import cache_dir
    from rgpo.runtime.run_folder import ERROR
    from rgpo.runtime.runner import run
    from rgpo.runtime.signals import Interrupted

    before = num_alike.set(num_sharing)
    gc.set_threshold(*gc.get_threshold()[:2], 100)  # imported objects are permanent; scanning them took 10 % of the startup time
    warnings.formatwarning = _format_warning
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))  # must be set before torch is imported
    try:
        run(job.config, *build(job.config), job.run_dir, job.config_hash, job.command)
    except Interrupted as stop:
        print(f"stopped; the same command resumes the run: {printable(str(job.run_dir), MAX_LINE)}", flush=True)
        distributed.stop()
        return stop.exit_code
    except KeyboardInterrupt:
        return 130
    except (ConfigError, *EXPLAINED) as error:
        where = f" (traceback in {job.run_dir / ERROR})" if isinstance(error, EnvironmentFault) else ""
        distributed.report_error(f"{error}{where}", error)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        distributed.report_error(
            f"{job.run_dir.name}: {type(error).__name__}: {error} (traceback in {job.run_dir / ERROR})", error
        )
        return 1
    finally:
        num_alike.reset(before)
    distributed.stop()
    return 0


def _format_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Print only the message of rgpo's own warnings; format all others as Python does."""
    from rgpo.errors import MAX_LINE, printable

    if category is UserWarning and "/rgpo/" in filename:
        return f"  {printable(str(message), MAX_LINE)}\n"
    return _python_format(message, category, filename, lineno, line)


def _tuned(words: list[str], config_dir: str | None) -> int | None:
    """Run a search if the sweeper is optuna and return its exit code; None for any other sweep."""
    from rgpo.cli import tune
    from rgpo.cli.overrides import hydra_on

    with hydra_on(config_dir) as composer:
        words = composer.unfolded(words)
        return tune.search(composer, words, start) if tune.wanted(composer, words) else None


def _split(words: Sequence[str]) -> tuple[bool, str | None, list[str]]:
    """Split the arguments into: -m given or not, the value of --config-dir, and the overrides.

    Raises: ConfigError if --config-dir has no value.
    """
    from rgpo.errors import ConfigError
    from rgpo.runtime.reader import user_path

    multirun, config_dir, overrides = False, None, []
    rest = iter(words)
    for word in rest:
        if word in ("-m", "--multirun"):
            multirun = True
        elif word in ("--config-dir", "-cd"):
            config_dir = next(rest, None)
            if config_dir is None:
                raise ConfigError(f"{word}: needs a folder; give one that holds gate/, algo/ and so on.")
        elif word.startswith("--config-dir="):
            config_dir = word.split("=", 1)[1]
        else:
            overrides.append(word)
    return multirun, None if config_dir is None else str(user_path(config_dir)), overrides


def _without_cfg_job(words: list[str]) -> list[str] | None:
    """The arguments without `--cfg job` and --resolve; None if `--cfg job` was not given."""
    rest = [word for word in words if word != "--resolve"]
    for flag in ("--cfg", "-c"):
        if flag in rest and rest[rest.index(flag) + 1 :][:1] == ["job"]:
            i = rest.index(flag)
            rest = rest[:i] + rest[i + 2 :]
            break
        if f"{flag}=job" in rest:
            rest.remove(f"{flag}=job")
            break
    else:
        return None
    return rest


def _print_config(words: list[str]) -> int:
    """Print the resolved configuration of one run, with ??? for values that have no default."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from rgpo.cli.overrides import hydra_on
    from rgpo.errors import MAX_LINE, ConfigError, first_line, printable

    try:
        _, config_dir, overrides = _split(words)
        with hydra_on(config_dir) as composer:
            composed, _ = composer(overrides)
            config = OmegaConf.to_container(composed, resolve=True)
    except (ConfigError, OmegaConfBaseException) as error:
        sentence = str(error) if isinstance(error, ConfigError) else first_line(error)
        print(f"rgpo-run: {printable(sentence, MAX_LINE)}", file=sys.stderr)
        return 2
    assert isinstance(config, dict)
    config.pop("presets", None)
    print(yaml.safe_dump(config, sort_keys=False), end="")
    return 0


def program() -> None:
    """Entry point of the console script; ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
