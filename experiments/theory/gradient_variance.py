"""The per-update estimate of the policy gradient's variance, against many re-sampled batches at frozen parameters.

A batch is collected by theta_old; the gradient is taken at theta, a step away, so that ratios are not 1. Over R independent
batches the spread of the gradient itself, sum ||G_r - Gbar||^2/(R-1), is the truth that tr Sigma/n of each single batch
estimates from its disjoint groups. Groups that cut a trajectory ignore the correlation along it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from matplotlib.axis import XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from torch import Tensor

from experiments.theory.common import Tables, Verdict, judge, load, load_gate, start
from experiments.theory.drift import objective
from rgpo.core.rollout import Array
from rgpo.language.task import Language
from rgpo.learning.algorithm import GateAlgorithm
from rgpo.learning.diagnostics import gradient_variance
from rgpo.learning.gradients import group_gradients
from rgpo.learning.loss import standardize
from rgpo.learning.types import Policy, State, Task
from rgpo.report.figures import style

COMMAND = "python -m experiments.theory gradient_variance"
GATES = ("identity", "clip", "sigmoid", "sign_aware_sigmoid")
NUM_ENVS, NUM_STEPS = 16, 128
NUM_PROMPTS = 16
CUTS = (1, 4, 16, 64, 128)  # steps of a group; the last is a whole environment
TOLERANCE = 0.1
WHOLE = {"CartPole": "whole trajectories", "Pendulum": "whole trajectories", "language": "whole prompts"}


def measure(smoke: bool) -> dict[str, pd.DataFrame]:
    """batches: one row per case, gate, batch and grouping, with the estimate tr Sigma/n and the batch's own ||G - Gbar||^2."""
    if smoke:
        return {"batches": resample(control("CartPole", "cartpole", 2, 5.0, GATES), num_batches=4, num_cut=1)}
    frames = [
        resample(control("CartPole", "cartpole", 30, 5.0, GATES), num_batches=100, num_cut=15),
        resample(control("Pendulum", "pendulum", 10, 3.0, ("identity", "sigmoid")), num_batches=100, num_cut=15),
        resample(language(20, 5.0), num_batches=40, num_cut=15),
    ]
    return {"batches": pd.concat(frames, ignore_index=True)}


class Case(NamedTuple):
    """A policy frozen between two parameter vectors, and how to draw batches for it."""

    name: str
    task: Task
    algorithm: GateAlgorithm
    policy: Policy
    old: State  # of the policy that collects
    new: State  # at which gradients are taken
    gates: tuple[str, ...]
    groups: dict[int, Array]  # samples in a group -> indices (M, b); the largest groups are independent


def control(name: str, task_name: str, num_warmup: int, times: float, gates: tuple[str, ...]) -> Case:
    """A control task after num_warmup iterations of PPO; groups are environments, and pieces of them."""
    shape = (f"task.num_envs={NUM_ENVS}", f"task.num_steps={NUM_STEPS}")
    task, algorithm = load(f"task={task_name}", "algo=ppo", *shape, "update.anneal_lr=false")
    index = np.arange(NUM_STEPS * NUM_ENVS).reshape(NUM_STEPS, NUM_ENVS).T
    groups = {size: index.reshape(-1, size) for size in CUTS}
    old, new, policy = _warm(task, algorithm, num_warmup, times)
    return Case(name, task, algorithm, policy, old, new, gates, groups)


def language(num_warmup: int, times: float) -> Case:
    """The embedded language model after num_warmup iterations of GRPO; groups are prompts, and single completions."""
    task, algorithm = load("task=qwen_rlhf", "algo=grpo", f"task.num_prompts={NUM_PROMPTS}", "update.anneal_lr=false")
    assert isinstance(task, Language)
    rows = np.arange(NUM_PROMPTS * task.group_size)
    groups = {size: rows.reshape(-1, size) for size in (1, task.group_size)}
    old, new, policy = _warm(task, algorithm, num_warmup, times)
    return Case("language", task, algorithm, policy, old, new, ("identity", "sigmoid"), groups)


def _warm(task: Task, algorithm: GateAlgorithm, num_warmup: int, times: float) -> tuple[State, State, Policy]:
    """The state after num_warmup iterations, the one `times` as far in the direction of the next update, and the policy."""
    policy = start(task, algorithm, num_warmup + 1, 1)
    old = policy.state_dict()
    for _ in range(num_warmup + 1):
        old = policy.state_dict()
        algorithm.learn(policy, task.collect(policy), measure_variance=False)
    return old, further(old, policy.state_dict(), times), policy


def further(old: State, new: State, times: float) -> State:
    """old + times (new - old) of every tensor: far enough for the gates to differ."""
    return {key: cast(Tensor, old[key]) + times * (cast(Tensor, new[key]) - cast(Tensor, old[key])) for key in old}


def separate(task: Task, algorithm: GateAlgorithm, seed: int) -> None:
    """Make the next batch independent of those before it."""
    if isinstance(task, Language):
        task.order = []  # draws a new order of the prompts
    else:
        task.setup(seed, algorithm.requirements)


def resample(case: Case, num_batches: int, num_cut: int) -> pd.DataFrame:
    """num_batches independent batches; smaller groups for the sigmoid in the first num_cut of them."""
    rows = []
    gradients: dict[str, list[Array]] = {gate: [] for gate in case.gates}
    for r in range(num_batches):
        separate(case.task, case.algorithm, 1000 + r)
        case.policy.load_state_dict(case.old)
        rollout = case.task.collect(case.policy)
        batch = case.policy.make_batch(rollout, *case.algorithm.advantage(rollout))
        if case.algorithm.advantage.normalize != "none":
            batch = batch.with_advantage(standardize(batch.samples.advantage))
        case.policy.load_state_dict(case.new)
        kl = case.policy.measure_shift(batch).kl.mean().item()
        for gate in case.gates:
            gradients_of = partial(group_gradients, case.policy, batch, objective(load_gate(gate)))
            for size, groups in case.groups.items():
                if size == max(case.groups) or (gate == "sigmoid" and r < num_cut):
                    trace = gradient_variance("at", gradients_of(groups), size)["gradvar/at"]
                    rows.append((case.name, gate, r, size, trace / groups.size, kl))
            (whole_batch,) = gradients_of(groups.reshape(1, -1))
            gradients[gate].append(whole_batch.double().numpy())
    frame = pd.DataFrame(rows, columns=["case", "gate", "batch", "group_size", "estimate", "kl"])
    return attach_truth(frame, {(case.name, gate): np.array(table) for gate, table in gradients.items()})


def attach_truth(frame: pd.DataFrame, gradients: dict[tuple[str, str], Array]) -> pd.DataFrame:
    """Each batch's R/(R-1) ||G_r - Gbar||^2, whose mean is the variance, and ||Gbar||^2; gradients (R, P) by case and gate."""
    parts = []
    for (case, gate), table in gradients.items():
        middle = table.mean(0)
        deviation = ((table - middle) ** 2).sum(1) * len(table) / (len(table) - 1)
        here = frame[(frame.case == case) & (frame.gate == gate)]
        parts.append(here.assign(deviation=deviation[here.batch.to_numpy()], signal=float(middle @ middle)))
    return pd.concat(parts, ignore_index=True)


def agreement(table: pd.DataFrame, case: str, gate: str, group_size: int) -> tuple[float, float, float]:
    """mean estimate / true variance, with an interval over the batches of both."""
    here = table[(table.case == case) & (table.gate == gate)]
    truth = here.drop_duplicates("batch").deviation.to_numpy()
    estimate = here[here.group_size == group_size].estimate.to_numpy()
    rng = np.random.default_rng(0)
    draws = [
        estimate[rng.integers(len(estimate), size=len(estimate))].mean() / truth[rng.integers(len(truth), size=len(truth))].mean()
        for _ in range(2000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(estimate.mean() / truth.mean()), float(low), float(high)


def whole(table: pd.DataFrame, case: str) -> int:
    """The group size of whole trajectories."""
    return int(table.group_size[table.case == case].max())


def verdicts(tables: Tables) -> list[Verdict]:
    table, rows = tables["batches"], []
    for case in table.case.unique():
        num = int(table.batch[table.case == case].nunique())
        for gate in table.gate[table.case == case].unique():
            found = agreement(table, case, gate, whole(table, case))
            rule = f"reproduced if mean estimate over true variance is within {TOLERANCE:g} of 1 or its interval holds 1"
            ok = abs(found[0] - 1) <= TOLERANCE or found[1] <= 1 <= found[2]
            where = f"{case}, gate {gate}: groups are {WHOLE[case]}"
            rows.append(Verdict("estimator (ours)", where, *found, num, "not stated", judge(ok), rule, COMMAND))
        found = agreement(table, case, "sigmoid", 1)
        rule = "reproduced if groups of one sample understate the variance (interval below 1)"
        where = f"{case}, gate sigmoid: groups are single {'completions' if case == 'language' else 'samples'}"
        rows.append(Verdict("estimator (ours)", where, *found, num, "not stated", judge(found[2] < 1), rule, COMMAND))
    return rows


def noise(table: pd.DataFrame, case: str, gate: str) -> float:
    """True variance of the batch's gradient over its squared mean."""
    here = table[(table.case == case) & (table.gate == gate)].drop_duplicates("batch")
    return float(here.deviation.mean() / here.signal.iloc[0])


def numbers(tables: Tables) -> dict[str, object]:
    table = tables["batches"]
    rows = [
        {"case": case, "gate": gate, "ratio": agreement(table, case, gate, whole(table, case)), "noise": noise(table, case, gate)}
        for case, gate in table[["case", "gate"]].drop_duplicates().itertuples(index=False)
    ]
    cuts = {
        case: {
            int(size): agreement(table, case, "sigmoid", size)
            for size in sorted(table[(table.case == case) & (table.gate == "sigmoid")].group_size.unique())
        }
        for case in table.case.unique()
    }
    facts = {case: {"batches": int(here.batch.nunique()), "kl": float(here.kl.mean())} for case, here in table.groupby("case")}
    missed = [f"{row['case']} with `{row['gate']}`" for row in rows if not row["ratio"][1] <= 1 <= row["ratio"][2]]
    return {"rows": rows, "cuts": cuts, "facts": facts, "missed": missed}


def plain_ticks(axis: XAxis, ticks: list[float]) -> None:
    """Plain numbers on a logarithmic axis."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def draw(tables: Tables) -> Figure:
    """Each batch's estimate against the truth; and what cutting trajectories into groups does to it."""
    table = tables["batches"]
    cases = list(table.case.unique())
    figure, axes = style.grid(2 * len(cases), columns=2, height=1.9)
    for i, case in enumerate(cases):
        here = table[(table.case == case) & (table.group_size == whole(table, case))]
        gates = list(here.gate.unique())
        for y, gate in enumerate(gates):
            chosen = here[here.gate == gate]
            relative = (chosen.estimate / chosen.deviation.mean()).to_numpy()
            jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(relative))
            axes[2 * i].plot(relative, y + jitter, "o", color=style.SKY, markersize=2, alpha=0.6)
            middle, low, high = agreement(table, case, gate, whole(table, case))
            axes[2 * i].errorbar(middle, y, xerr=[[middle - low], [high - middle]], fmt="D", color=style.BLACK, elinewidth=1.2)
        axes[2 * i].axvline(1, color=style.GRAY, linewidth=0.8, zorder=1)
        axes[2 * i].set_yticks(range(len(gates)), gates)
        axes[2 * i].set(xlabel="estimate of one batch / true variance", title=f"{case}: groups are {WHOLE[case]}", xscale="log")
        plain_ticks(axes[2 * i].xaxis, [0.25, 0.5, 1, 2, 4, 8])
        sizes = np.array(sorted(table[(table.case == case) & (table.gate == "sigmoid")].group_size.unique()))
        found = np.array([agreement(table, case, "sigmoid", size) for size in sizes])
        axes[2 * i + 1].errorbar(
            sizes, found[:, 0], yerr=[found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]], color=style.VERMILLION, marker="^"
        )
        axes[2 * i + 1].axhline(1, color=style.GRAY, linewidth=0.8)
        unit = "completions in a group" if case == "language" else "samples in a group, along a trajectory"
        axes[2 * i + 1].set(xscale="log", xlabel=unit, ylabel="estimate / true variance")
        axes[2 * i + 1].set(title=f"{case}: smaller groups", ylim=(0, None))
        plain_ticks(axes[2 * i + 1].xaxis, sizes.tolist())
    return figure
