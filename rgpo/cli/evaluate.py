"""rgpo-eval: returns of a trained control policy, or scores and completions of a trained language model."""

from __future__ import annotations

from functools import cache

from rgpo.cli.command import flag, number, run_command, split
from rgpo.leaving import run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rgpo.cli.command import Words
    from rgpo.cli.stored_run import Parts, StoredRun
    from rgpo.control.task import Control

FOLDER = "evaluation"  # inside the run's folder
CONTROL, LANGUAGE = ("episodes", "seed", "video"), ("prompts",)
MOST = 100_000  # most episodes or prompts
USAGE = """rgpo-eval RUN [episodes=10] [seed=0] [video=true]
rgpo-eval RUN [prompts=N]

Control: mean, standard error and number of returns of the deterministic and of the stochastic policy. video=true also writes a
deterministic episode to RUN/evaluation/episode.mp4, or episode.gif where imageio-ffmpeg is not installed.
Language: scores on held-out prompts (as many as in training, or N), and RUN/evaluation/completions.parquet.

  rgpo-eval results/default/hopper-ppo-s1-1a2b3c4d episodes=50 video=true
  rgpo-eval results/default/qwen_rlhf-rgpo-s1-1a2b3c4d prompts=200

The run may be finished or interrupted: the policy is that of its policy/ or of its last checkpoint.

exit code: 0 done, 1 it cannot be computed or stored, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command("rgpo-eval", USAGE, _main, argv)


def _main(words: list[str]) -> int:
    from rgpo.cli.config import build
    from rgpo.cli.stored_run import open_run
    from rgpo.cli.sweep import import_from_current_directory
    from rgpo.control.task import Control
    from rgpo.errors import ConfigError
    from rgpo.runtime.reader import user_path

    (source,), settings = split(words, ("RUN",), (*CONTROL, *LANGUAGE))
    import_from_current_directory()
    run = open_run(user_path(source).absolute())
    task = build(run.config)[0]
    if isinstance(task, Control):
        _refuse(settings, LANGUAGE, "is read for language models only")
        return _control(run, task, settings)
    from rgpo.language.task import Language

    if not isinstance(task, Language):
        raise ConfigError(f"{run.folder}: rgpo-eval does not know its task; use rgpo.load(RUN).evaluate().")
    _refuse(settings, CONTROL, "is read for control tasks only")
    return _language(run, task.num_eval_prompts, settings)


def _refuse(settings: Words, keys: Sequence[str], why: str) -> None:
    from rgpo.errors import require

    for key in keys:
        require(key not in settings, key, settings.get(key), f"{why}; leave it out.")


def _control(run: StoredRun, task: Control, settings: Words) -> int:
    import numpy as np

    from rgpo.cli.stored_run import restore_parts, restored_actor, stored_actor
    from rgpo.control import evaluation
    from rgpo.runtime.settings import Settings
    from rgpo.runtime.trackers import Trackers

    episodes, seed = number(settings, "episodes", 10, 1, MOST), number(settings, "seed", 0, 0, 2**31)
    video = flag(settings, "video")
    actor = stored_actor(run.folder) or restored_actor(run, cache(lambda: restore_parts(run)))
    facts = actor.description["run"]
    print(f"{run.folder.name}: {actor.description['env_id']}, iteration {facts['iteration']:,}, {facts['env_steps']:,} steps")
    for name, deterministic in (("deterministic", True), ("stochastic", False)):
        found, num_cut = evaluation.returns(task, actor, episodes, seed, deterministic)
        cut = f", {num_cut} cut after {evaluation.LONGEST_EPISODE:,} steps" if num_cut else ""
        error = f" +- {found.std(ddof=1) / np.sqrt(episodes):.3g} (standard error, n = {episodes}" if episodes > 1 else " (n = 1"
        print(f"  {name:13} return {found.mean():.6g}{error}{cut})", flush=True)
    if video:
        path = evaluation.film(task, actor, run.folder / FOLDER, seed)
        print(f"  {path}")
        step = int(str(facts["env_steps"]))
        dashboards = Trackers(Settings.of(run.config).exports, run.folder, run.config, step)
        dashboards.log_film(step, path)
        dashboards.finish()
    return 0


def _language(run: StoredRun, num_prompts: int, settings: Words) -> int:
    from rgpo.cli.stored_run import restore_parts
    from rgpo.runtime.resources import limited_threads
    from rgpo.runtime.settings import Settings

    parts = restore_parts(run)
    count = number(settings, "prompts", num_prompts, 1, MOST)
    with limited_threads(Settings.of(run.config).num_threads):
        return _score(run, parts, count)


def _score(run: StoredRun, parts: Parts, count: int) -> int:
    """Evaluate on count prompts, print the summary and write the completions of policy and reference."""
    import pyarrow as pa

    from rgpo import atomic
    from rgpo.errors import require
    from rgpo.language.evaluation import Evaluator
    from rgpo.language.task import Language
    from rgpo.runtime.metrics import ARROW_TYPES
    from rgpo.runtime.own_metrics import sample_columns
    from rgpo.runtime.parts import storing, write_atomically
    from rgpo.runtime.settings import Settings

    task = parts.task
    assert isinstance(task, Language)
    have = len(task.assets.heldout_prompts)
    require(count <= have, "prompts", count, f"there are only {have} held-out prompts; lower it.")
    keep = task.skip_special_tokens
    evaluator = Evaluator(task.assets, count, count, task.evaluator.seed, rewards=task.rewards, skip_special_tokens=keep)
    task.evaluator = evaluator
    metrics = task.evaluate(parts.policy)
    print(f"{run.folder.name}: iteration {parts.iteration:,}")
    for line in evaluator.summary(dict(metrics)):
        print(f"  {line}")
    settings = Settings.of(run.config)
    constants = {"run_id": run.folder.name, "algo": settings.choice("algo"), "scale": settings.choice("scale")}
    rows = [
        {**constants, "seed": settings.seed, **row, "iteration": 0 if row["reference"] else parts.iteration}
        for row in evaluator.take_samples()
    ]
    kinds = sample_columns(run.config)
    columns = pa.schema([pa.field(name, ARROW_TYPES[kind]) for name, kind in kinds.items()])
    path = run.folder / FOLDER / "completions.parquet"
    with storing(run.folder):
        atomic.make_folder(path.parent)
        atomic.remove_temporary(path.parent)
        write_atomically(pa.Table.from_pylist([{name: row[name] for name in kinds} for row in rows], schema=columns), path)
    print(f"  {path}: {count} completions of the policy and {count} of the reference")
    return 0


def program() -> None:
    """Entry point of the console script; ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
