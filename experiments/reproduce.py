"""python -m experiments.reproduce TARGET: rerun the evidence, or a small version of it.

    run        the embedded language task, a short Hopper run, and their report: under 5 minutes on two cores
    quick      a small version of every figure that needs runs: under 15 minutes on two cores
    control    all experiments in conf/experiment on control tasks
    language   all experiments in conf/experiment on language tasks
    theory     the experiments of docs/theory.md, and the page itself

The plan with its expected time is printed first; with `--plan`, nothing is run. Finished runs are skipped, so after Ctrl-C the
same command continues.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.theory.__main__ import NAMES
from rgpo.cli.config import compose_jobs
from rgpo.cli.config_dir import group_options
from rgpo.cli.plan import building_of, expected, planned
from rgpo.paths import conf_dir

ROOT = Path(__file__).parents[1]
NO_EVIDENCE = (  # experiments that no claim uses; those of the zoo need additional packages, and smollm2 needs pairs
    "smoke",
    "smollm2",
    *(f"zoo_{name}" for name in ("bipedalwalker", "lunarlander", "minigrid_empty", "mountaincar_continuous")),
)
REPORT = 30.0  # CPU-s
ONE_UPDATE = 60.0  # CPU-s for single updates at small sizes
THEORY = 150.0  # CPU-s per experiment, approximately
THEORY_SMOKE = 60.0  # CPU-s for all of them at tiny sizes
SMALL_CONTROL = ["task.num_steps=512", "eval_every=5", "gradvar_every=5"]
SMALL_UPDATES = ["--tasks", "hopper", "--states", "3", "--batches", "1", "--episodes", "2", "--steps", "81920"]
SMALL_LANGUAGE = ["num_iterations=8", "eval_every=4", "gradvar_every=4"]


class Step(NamedTuple):
    """A command and its expected CPU-seconds."""

    command: list[str]
    seconds: float


def main(words: list[str] | None = None) -> int:
    """Parse the command line, print the plan and run it; returns the exit code of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", choices=["run", "quick", "control", "language", "theory"])
    parser.add_argument("--results", default=None, help="folder of the runs; default: results, or results-quick")
    parser.add_argument("--plan", action="store_true", help="print the expected time and the commands only")
    given = parser.parse_args(words)
    steps = list(plan(given.target, given.results or ("results-quick" if given.target == "quick" else "results")))
    seconds = sum(step.seconds for step in steps)
    print(f"{given.target}: {expected(seconds)} on two cores", flush=True)
    for step in steps:
        print(f"  {' '.join(step.command)}  ({expected(step.seconds)})", flush=True)
    return 0 if given.plan else run(steps)


def run(steps: Sequence[Step]) -> int:
    """Run the commands in turn; the report's exit code 1 (something was left out) is not a failure."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    for number, step in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {' '.join(step.command)}", flush=True)
        program, *rest = step.command
        module = {"rgpo-run": ["-m", "rgpo.cli.run"], "rgpo-report": ["-m", "rgpo.report.cli"], "python": []}[program]
        code = subprocess.run([sys.executable, *module, *rest], env=environment).returncode  # noqa: S603  # ours
        if code and not (program == "rgpo-report" and code == 1):
            return code
    return 0


def plan(target: str, results: str) -> Iterator[Step]:
    """The commands for a target, excluding runs already finished in the results folder."""
    where = [f"results_dir={results}"]
    if target == "run":
        yield sweep(["algo=rgpo", "task=qwen_rlhf", *where], many=False)
        yield sweep(["algo=rgpo", "task=hopper", "total_env_steps=102400", *where], many=False)
        yield Step(["rgpo-report", *where], REPORT)
    elif target == "quick":
        yield sweep(["experiment=first_evidence", "seed=1,2,3", "total_env_steps=20480", *SMALL_CONTROL, *where])
        for name in ("factorial", "matched_kl", "sensitivity"):
            yield sweep([f"experiment={name}", "seed=1", "task=hopper", "total_env_steps=10240", *SMALL_CONTROL, *where])
        for name in ("rlhf_embedded", "language_frontier_adaptive", "language_frontier_reward_kl"):
            yield sweep([f"experiment={name}", "seed=1", *SMALL_LANGUAGE, *where])
        words = ["--results", f"{results}/one_update", "--figure", f"{results}/one_update.svg", *SMALL_UPDATES]
        yield Step(["python", "-m", "experiments.one_update", *words], ONE_UPDATE)
        yield Step(["python", "-m", "rgpo.cli.gates_table", results], 10.0)
        docs = ["--docs", f"{results}/docs"]
        yield Step(["python", "-m", "experiments.theory", "--smoke", "--results", f"{results}/theory", *docs], THEORY_SMOKE)
        yield Step(["rgpo-report", *where, f"out={results}/report"], 2 * REPORT)
    elif target == "theory":
        names = [name for name in NAMES if not any((Path(results) / "theory").glob(f"{name}_*.parquet"))]
        for name in [*names, "page"]:
            seconds = THEORY if name in NAMES else REPORT
            yield Step(["python", "-m", "experiments.theory", "--results", f"{results}/theory", *_docs(results), name], seconds)
    else:
        for name in experiments(language=target == "language"):
            yield sweep([f"experiment={name}", *where])


def _docs(results: str) -> list[str]:
    """Arguments for the theory page's folder: docs/ for the committed results, else next to the results."""
    return [] if results == "results" else ["--docs", f"{results}/docs"]


def experiments(language: bool) -> list[str]:
    """Experiments in conf/experiment on language tasks or on control tasks."""
    found = []
    for name in group_options("experiment"):
        text = (conf_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        if name not in NO_EVIDENCE and ("qwen_rlhf" in text) is language:
            found.append(name)
    return found


def sweep(words: list[str], many: bool = True) -> Step:
    """An rgpo-run command with the expected time of its unfinished runs."""
    left = [run for run in planned(compose_jobs(words, many, None)) if not run.done]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if many and len(left) > 1 else []
    seconds = sum(run.seconds for run in left) + building_of(left)
    return Step(["rgpo-run", *(["-m"] if many else []), *words, *parallel], seconds)


if __name__ == "__main__":
    sys.exit(main())
