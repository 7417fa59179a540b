"""python -m experiments.one_update: the gain in true return of a single update, against its KL.

PPO trains as usual. At evenly spaced iterations, every arm makes an update from the same policy on the same batch, with Adam's
moments reset, and the return of the resulting policy is measured over whole episodes. All policies at such a state get the same
initial states and the same action noise (common random numbers), so that differences are less noisy than returns.

    gain = mean return after - mean return before, KL = mean over the batch's states of KL(old || new)

Each state's rows are written to results/one_update/TASK-ITERATION.parquet; existing files are not measured again.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from experiments.pages.one_update import figure, gains, read
from experiments.theory.common import load, start
from rgpo import atomic
from rgpo.control.evaluation import returns
from rgpo.control.policy import ControlPolicy
from rgpo.control.task import Control
from rgpo.core.rollout import Rollout
from rgpo.learning.algorithm import GateAlgorithm, estimate
from rgpo.learning.export import Facts
from rgpo.learning.sgd import SGD
from rgpo.report.figures import style

TASKS = ("hopper", "halfcheetah", "walker2d", "ant")
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
EPOCHS = (1, 2, 5, 10, 20)
PENALTY = 1.0  # coefficient of KL(old || new) in arms with a penalty
ARMS = {
    "no gate": ("identity", 0.0),
    "clip": ("clip", 0.0),
    "sigmoid": ("sigmoid", 0.0),
    "sign-aware": ("sign_aware_sigmoid", 0.0),
    "spo": ("spo", 0.0),
    "no gate + KL": ("identity", PENALTY),
    "clip + KL": ("clip", PENALTY),
    "sigmoid + KL": ("sigmoid", PENALTY),
}
CONFIDENCE = 0.95  # for the figure's band
NOWHERE = Facts(run_id="", task="", algo="", seed=0, iteration=0, env_steps=0, command="", commit=None, versions={}, metrics={})


class Size(NamedTuple):
    """Size of the measurement: states per run, batches per state, episodes per policy, and environment steps of the run."""

    states: int = 10
    batches: int = 5
    episodes: int = 16
    steps: int = 1_000_000


def main(words: Sequence[str] | None = None) -> None:
    """Measure all states without a file."""
    parser = argparse.ArgumentParser(prog="python -m experiments.one_update", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--results", type=Path, default=Path("results/one_update"))
    parser.add_argument("--states", type=int, default=Size().states)
    parser.add_argument("--batches", type=int, default=Size().batches)
    parser.add_argument("--episodes", type=int, default=Size().episodes)
    parser.add_argument("--steps", type=int, default=Size().steps)
    parser.add_argument("--figure", type=Path, help="an SVG of all states that have a file")
    given = parser.parse_args(words)
    atomic.make_folder(given.results)
    with threadpool_limits(1):
        for task in given.tasks:
            measure(task, Size(given.states, given.batches, given.episodes, given.steps), given.results)
    if given.figure:
        with style.context():
            drawn = figure(gains(read(given.results)), CONFIDENCE)
            style.settle(drawn)
            atomic.write_bytes(given.figure, style.save(drawn, given.figure.stem, ("svg",), 220)["svg"])
        print(given.figure)


def measure(name: str, size: Size, folder: Path) -> None:
    """Train PPO on a task and write a table for every state without one."""
    task, algorithm = load("algo=ppo", f"task={name}")
    assert isinstance(task, Control)
    num_iterations = task.plan_iterations(size.steps)
    policy = start(task, algorithm, num_iterations, seed=1)
    assert isinstance(policy, ControlPolicy)
    marks = np.linspace(0, num_iterations, size.states + 2, dtype=int)[1:-1].tolist()
    files = {mark: folder / f"{name}-{mark:04d}.parquet" for mark in marks}
    wanted = {mark: file for mark, file in files.items() if not file.exists()}
    for iteration in range(1, max(wanted, default=0) + 1):
        algorithm.learn(policy, task.collect(policy), False)
        if iteration in wanted:
            before = task.state_dict()
            rows = pd.DataFrame(list(updates(name, task, policy, iteration, size)))
            task.load_state_dict(before)  # undo the effects of measuring
            stream = io.BytesIO()
            rows.assign(task=name, state=iteration).to_parquet(stream, compression="zstd")
            atomic.write_bytes(wanted[iteration], stream.getvalue())
            print(f"{wanted[iteration]}: {len(rows)} updates", flush=True)


def updates(name: str, task: Control, policy: ControlPolicy, iteration: int, size: Size) -> Iterator[dict[str, object]]:
    """Measure every arm, learning rate and number of epochs on a few batches from one policy, which is restored afterwards."""
    saved = policy.state_dict()
    return_before = measured_return(task, policy, iteration, size)
    rollouts = [task.collect(policy) for _ in range(size.batches)]
    for batch, rollout in enumerate(rollouts):
        for arm, (gate, coef) in ARMS.items():
            for lr in LEARNING_RATES:
                penalty = ["penalty=fixed", f"penalty.coef={coef:g}"] if coef else ["penalty=none"]
                _, algorithm = load("algo=ppo", f"task={name}", f"gate={gate}", *penalty, f"update.lr={lr:g}")
                for epochs, kl in update(algorithm, policy, rollout, seed=batch):
                    found = {"batch": batch, "arm": arm, "lr": lr, "epochs": epochs, "kl": kl}
                    yield found | {"return_before": return_before, "return_after": measured_return(task, policy, iteration, size)}
                policy.load_state_dict(saved)


def update(algorithm: GateAlgorithm, policy: ControlPolicy, rollout: Rollout, seed: int) -> Iterator[tuple[int, float]]:
    """Train on one batch; yields each measured number of epochs with the KL(old || new) in nats after it."""
    algorithm.setup(policy, 1, seed)
    assert isinstance(algorithm.update, SGD)
    algorithm.update.anneal_lr = False
    batch = policy.make_batch(rollout, *estimate(algorithm.advantage, rollout))
    done = 0
    for epochs in EPOCHS:
        algorithm.update.num_epochs = epochs - done
        algorithm.update(policy, batch, algorithm.penalty.loss_coef)
        done = epochs
        yield epochs, policy.measure_shift(batch).kl.mean().item()


def measured_return(task: Control, policy: ControlPolicy, seed: int, size: Size) -> float:
    """Mean return of the stochastic policy over episodes whose randomness depends only on the seed."""
    actor = task.make_actor(policy, policy.state_dict(), NOWHERE)
    found, _ = returns(task, actor, size.episodes, seed, deterministic=False)
    return float(found.mean())


if __name__ == "__main__":
    main()
