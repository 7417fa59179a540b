"""Shared by the experiments: gates and algorithms by name, rows of the ledger, intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from rgpo.cli.config import build, compose_jobs, make
from rgpo.cli.config_dir import group_options
from rgpo.core.gate import GateLike
from rgpo.core.rollout import Array
from rgpo.errors import ConfigError
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.types import Policy, Task
from rgpo.paths import conf_dir

Tables = Mapping[str, pd.DataFrame]
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
UNDECIDED = "undecided"


class Verdict(NamedTuple):
    """One row of the ledger; measured, low and high are one number with its interval (NaN where it has none)."""

    claim: str
    setting: str
    measured: float
    low: float
    high: float
    n: int  # size of the sample that the interval is over
    paper: str
    verdict: str
    rule: str
    command: str


def judge(holds: bool) -> str:
    """The verdict on a claim that could be tested."""
    return "reproduced" if holds else "not reproduced"


def interval(values: Array, statistic: Callable[..., Array] = np.mean) -> tuple[float, float, float]:
    """The statistic of values (n, ...) over its first axis and a percentile bootstrap interval at 95 %, seeded."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(0)
    draws = [float(statistic(values[rng.integers(len(values), size=len(values))], axis=0)) for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(statistic(values, axis=0)), float(low), float(high)


def share(count: int, total: int) -> tuple[float, float, float]:
    """count/total and Wilson's interval at 95 %, which is not empty at a count of 0."""
    z, p = 1.959964, count / total
    middle, half = p + z**2 / (2 * total), z * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return p, float(max(0.0, (middle - half) / (1 + z**2 / total))), float(min(1.0, (middle + half) / (1 + z**2 / total)))


def load_gate(name: str, **change: object) -> GateLike:
    """The gate of conf/gate/<name>.yaml, with some of its parameters changed."""
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "gate" / f"{name}.yaml"))
    assert isinstance(node, dict)
    gate: GateLike = make("gate", {str(key): value for key, value in node.items()} | change)
    return gate


def gate_names() -> list[str]:
    """Every gate of the old ratio and the sign of A alone in conf/gate, without those that adapt the sharpness of another."""
    left_out = ("open", "budget")  # meant for the reference's ratio
    names = [name for name in group_options("gate") if name not in left_out and not name.startswith("adaptive")]
    return [name for name in names if not ((gate := load_gate(name)).needs_logp_old or gate.needs_batch)]


def load(*overrides: str) -> tuple[Task, GateAlgorithm]:
    """Task and algorithm of a command line, as rgpo-run makes them."""
    task, algorithm = build(_config(overrides))
    assert isinstance(algorithm, GateAlgorithm)
    return task, algorithm


def start(task: Task, algorithm: GateAlgorithm, num_iterations: int, seed: int) -> Policy:
    """Seed the task, and prepare the algorithm to train a fresh policy."""
    task.setup(seed, algorithm.requirements)
    policy = task.make_policy(seed)
    algorithm.setup(policy, num_iterations, seed)
    return policy


@cache
def _config(overrides: tuple[str, ...]) -> dict[str, object]:
    (job,) = compose_jobs([*overrides, "update.compile=false"], multirun=False, config_dir=None)
    return job.config


def algorithms(task: str) -> list[str]:
    """The algorithms of conf/algo that a task accepts."""
    accepted = []
    for name in group_options("algo"):
        try:
            load(f"task={task}", f"algo={name}")
        except ConfigError:
            continue
        accepted.append(name)
    return accepted
