"""hydra/sweeper=optuna: search ranges of values for the best mean of a metric over seeds.

A trial is one set of values, run with every seed on the launcher. Runs pause at fixed shares of their length; a trial that is
worse there than a percentile (by default the median) of the earlier trials is pruned, else it continues from its checkpoints. A
trial with a failed run, such as one that diverged, counts as pruned. Trials are stored as they end; repeating the command
continues the search. hydra-optuna-sweeper has the same syntax, but needs optuna < 3 and can neither average over seeds nor prune.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from omegaconf import OmegaConf

from rgpo import atomic
from rgpo.cli.build import build, make
from rgpo.cli.config import Job, jobs_of
from rgpo.cli.overrides import Composer
from rgpo.cli.search_space import Space, space_of
from rgpo.cli.sweep import Launcher, Start
from rgpo.core.ranges import POSITIVE, UNIT_INTERVAL, accept, check_fields, count, or_null
from rgpo.errors import ConfigError, close_matches, first_line, require, shell_word
from rgpo.runtime import run_folder
from rgpo.runtime.metrics import measured
from rgpo.runtime.own_metrics import glossary

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial, TrialState

SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "qmc": "QMCSampler"}
PERCENT = accept(lambda percent: 0 <= percent <= 100, "must be from 0 to 100.")
STUDY = accept(lambda name: re.fullmatch(r"[\w.+-]{1,100}", name) is not None, "must be letters, digits, and . _ + - alone.")
SHARES = accept(lambda shares: all(0 < share < 1 for share in shares), "must be shares of a run between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of a search; conf/hydra/sweeper/optuna.yaml describes each key."""

    params: dict[str, str] | None
    metric: str
    direction: Literal["maximize", "minimize"]
    final_fraction: float = field(metadata=POSITIVE)
    n_trials: int = field(metadata=count(1_000_000))
    n_jobs: int = field(metadata=count(10_000))
    prune_at: list[float] = field(metadata=SHARES)
    n_startup_trials: int = field(metadata=count(1_000_000, least=0))
    percentile: float = field(metadata=PERCENT)
    sampler: Literal["tpe", "random", "qmc"]
    seed: int = field(metadata=count(2**31, least=0))
    storage: str | None
    study_name: str | None = field(metadata=or_null(STUDY))

    def __post_init__(self) -> None:
        check_fields(self, "hydra.sweeper")
        UNIT_INTERVAL["range"].check("hydra.sweeper.final_fraction", self.final_fraction)


def wanted(composer: Composer, words: list[str]) -> bool:
    """True if a sweep's arguments, or an option that they select, choose optuna as the sweeper."""
    fixed = [word for word, item in zip(words, composer.parse(words, sweep=True), strict=True) if not item.is_sweep_override()]
    return bool(composer.whole(fixed).hydra.runtime.choices["hydra/sweeper"] == "optuna")


def search(composer: Composer, words: list[str], start: Start) -> int:
    """Run the remaining trials; returns the exit code.

    Raises: ConfigError if optuna is not installed, the arguments are invalid, the metric is unknown, another process is running
    the search, or the stored study has other settings.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("hydra/sweeper=optuna: is not installed, pip install 'rgpo[optuna]'.")
    fixed = [word for word, item in zip(words, composer.parse(words, sweep=True), strict=True) if not item.is_sweep_override()]
    node = cast("dict[str, object]", OmegaConf.to_container(composer.whole(fixed).hydra.sweeper, resolve=True))
    settings: Search = make("hydra.sweeper", {"_target_": f"{__name__}.Search", **node}, Search)
    space = space_of(composer, words)
    jobs = [job for values in space.corners() for job in _jobs(composer, space, values)]
    names = glossary(jobs[0].config)
    require(
        settings.metric in names,
        "hydra.sweeper.metric",
        settings.metric,
        f"is not a metric.{close_matches(settings.metric, names)}",
    )
    if jobs[0].plan:
        print("\n".join(f"{key}: {value}" for key, value in space.ranges.items()))
        print(f"{settings.n_trials} trials of {len(space.seeds)} run(s) each")
        return 0
    folder = Path(str(jobs[0].config["results_dir"])) / str(jobs[0].config["name"])
    atomic.make_folder(folder)
    name = settings.study_name or _name(settings, space, jobs[0])
    with atomic.locked(folder / f".{name}.lock", wait=False) as mine:
        require(mine, "hydra.sweeper.study_name", name, "another process is searching it; wait for it, or give another name.")
        study = _open(settings, space, folder / f"{name}.optuna", name)
        launcher = Launcher(composer, words, jobs[: settings.n_jobs * len(space.seeds)], start)
        return Trials(composer, settings, space, study, launcher).run()


def _jobs(composer: Composer, space: Space, values: Mapping[str, object], pause_at: int | None = None) -> list[Job]:
    pause = [] if pause_at is None else [f"pause_at={pause_at}"]
    return [job for words in space.words(values) for job in jobs_of(composer, [*words, *pause], multirun=False)]


def _facts(settings: Search, space: Space) -> str:
    """JSON of everything on which a study's values depend."""
    from optuna.distributions import distribution_to_json

    ranges = {key: distribution_to_json(value) for key, value in space.ranges.items()}
    left_out = ("results_dir=", "name=", "num_threads=", "memory_gb=", "on_failure=")
    words = sorted(word for word in space.fixed if not word.startswith(left_out))
    return json.dumps([words, space.seeds, ranges, settings.metric, settings.direction, settings.final_fraction], sort_keys=True)


def _name(settings: Search, space: Space, job: Job) -> str:
    digest = hashlib.sha256(_facts(settings, space).encode()).hexdigest()[:8]
    return f"{job.choice('task')}-{job.choice('algo')}-{digest}"


def _open(settings: Search, space: Space, path: Path, name: str) -> Study:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    percentile = settings.percentile
    pruner = optuna.pruners.PercentilePruner(percentile, n_startup_trials=settings.n_startup_trials)
    try:
        storage = settings.storage or optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        options = {"direction": settings.direction, "load_if_exists": True}
        study = optuna.create_study(storage=storage, study_name=name, pruner=pruner, **options)
    except Exception as error:  # databases raise many kinds of errors
        where = f"hydra.sweeper.storage={settings.storage or path}"
        raise ConfigError(f"{where}: cannot be used ({first_line(error)}); give a URL such as sqlite:///study.db.") from error
    own = {} if settings.sampler == "qmc" else {"seed": settings.seed + len(study.trials)}  # the same seed would repeat its draws
    study.sampler = getattr(optuna.samplers, SAMPLERS[settings.sampler])(**own)
    facts = _facts(settings, space)
    stored = study.user_attrs.get("rgpo", facts)
    require(stored == facts, "hydra.sweeper.study_name", name, "was made with other words; give another name.")
    study.set_user_attr("rgpo", facts)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):  # left over from an interrupted command
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


class Trials:
    """Runs the remaining trials of a study, n_jobs at a time."""

    def __init__(self, composer: Composer, settings: Search, space: Space, study: Study, launcher: Launcher) -> None:
        self.composer, self.settings, self.space, self.study, self.launcher = composer, settings, space, study, launcher
        self.code = 0

    def run(self) -> int:
        """Run the trials and print the best; the exit code is 1 if a process was lost or on_failure=stop ended the search."""
        from optuna.trial import TrialState

        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        while (left := self.settings.n_trials - len(self.study.get_trials(deepcopy=False, states=ended))) > 0:
            trials = [self.study.ask(dict(self.space.ranges)) for _ in range(min(left, self.settings.n_jobs))]
            if not self._run(trials):
                return self.code or 1
        self._print_best()
        return self.code

    def _run(self, trials: list[Trial]) -> bool:
        """Run a batch of trials, comparing them at each pause; returns False if the search must end."""
        from optuna.trial import TrialState

        lengths: dict[int, int] = {}
        for trial in list(trials):
            try:
                lengths[trial.number] = _length(_jobs(self.composer, self.space, trial.params)[0])
            except ConfigError as error:  # incompatible values
                self._end(trial, TrialState.PRUNED, str(error))
                trials.remove(trial)
        for share in (*sorted(self.settings.prune_at), 1.0):
            at = {trial.number: max(1, math.ceil(share * lengths[trial.number])) for trial in trials}
            runs = {
                trial.number: _jobs(self.composer, self.space, trial.params, at[trial.number] if share < 1 else None)
                for trial in trials
            }
            jobs = [job for found in runs.values() for job in found]
            for job in jobs:
                run_folder.prepare(job.run_dir, force=False)
            self.code, broken = self.launcher.run(jobs) if jobs else (0, {})
            if self.code in (130, 143):
                print("stopped; the same command continues the search", flush=True)
                return False
            for trial in list(trials):
                if not self._judge(trial, runs[trial.number], at[trial.number], final=share == 1.0):
                    trials.remove(trial)
            if broken or (self.launcher.stops and self._any_failed(jobs)):
                self.code = 1
                return not self.launcher.stops
        return True

    def _any_failed(self, jobs: Sequence[Job]) -> bool:
        return any(run_folder.status(job.run_dir) == "failed" for job in jobs)

    def _judge(self, trial: Trial, jobs: Sequence[Job], iteration: int, final: bool) -> bool:
        """Report a trial's value; end the trial if it is complete, pruned or has a failed run. True if it continues."""
        from optuna.trial import TrialState

        states = [run_folder.status(job.run_dir) for job in jobs]
        if "failed" in states:
            reason = run_folder.read_state(jobs[states.index("failed")].run_dir).get("reason")
            return self._end(trial, TrialState.PRUNED, f"a run failed: {reason}")
        if any(state != "completed" and (final or reached(job) < iteration) for state, job in zip(states, jobs, strict=True)):
            return self._end(trial, TrialState.FAIL, "a run is not complete")
        values = [value_of(job, self.settings, iteration) for job in jobs]
        mean = float(np.mean(values))
        if not math.isfinite(mean):
            if not final:
                return True  # a metric that is measured only at the end cannot be used for pruning
            raise ConfigError(
                f"hydra.sweeper.metric={self.settings.metric}: was not measured; give a metric that these runs have."
            )
        trial.report(mean, iteration)
        error = f" +- {np.std(values, ddof=1) / math.sqrt(len(values)):.3g}" if len(values) > 1 else ""
        shown = f"{mean:.6g}{error} (n = {len(values)})"
        if final:
            return self._end(trial, TrialState.COMPLETE, shown, mean)
        return not trial.should_prune() or self._end(trial, TrialState.PRUNED, f"{shown} after iteration {iteration}")

    def _end(self, trial: Trial, state: TrialState, text: str, value: float | None = None) -> bool:
        self.study.tell(trial, value, state=state)
        words = " ".join(f"{key}={value}" for key, value in trial.params.items())
        print(f"trial {trial.number}: {words}: {state.name.lower()}, {text}", flush=True)
        return False

    def _print_best(self) -> None:
        try:
            best = self.study.best_trial
        except ValueError:
            print("no trial is complete", flush=True)
            self.code = 1
            return
        words = [*self.space.fixed, *(f"{key}={value}" for key, value in best.params.items())]
        seeds = [f"seed={','.join(self.space.seeds)}"] if self.space.seeds != ("",) else []
        print(f"best of {len(self.study.trials)} trials: trial {best.number}, {self.settings.metric} {best.value:.6g}")
        own = [f"--config-dir={self.composer.config_dir}"] if self.composer.config_dir else []
        print(f"  {' '.join(map(shell_word, ['rgpo-run', '-m', *own, *words, *seeds]))}", flush=True)


def _length(job: Job) -> int:
    """Number of iterations of a run."""
    iterations = job.config["num_iterations"]
    return int(cast(int, iterations or build(job.config)[0].plan_iterations(cast(int, job.config["total_env_steps"]))))


def reached(job: Job) -> int:
    """The iteration of the run's last checkpoint."""
    return run_folder.read_state(job.run_dir).get("iteration", 0)


def value_of(job: Job, settings: Search, iteration: int) -> float:
    """Mean of the last final_fraction of a run's measured values up to an iteration; nan if there are none."""
    found = measured(job.run_dir, settings.metric, iteration)
    last = math.ceil(settings.final_fraction * len(found))
    return float(np.mean(found[-last:])) if last else math.nan
