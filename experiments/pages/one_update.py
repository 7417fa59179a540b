"""Gain in true return over the KL of a single update: curves per arm, and differences from PPO's clip at equal KL.

A state's curve consists of the means over its batches for each (learning rate, epochs), sorted by KL and interpolated linearly in
log KL. All policies at a state are measured with the same initial states and noise, so arms are paired by state: intervals of
differences are Student's over states and hold simultaneously for all arms and levels of a task (Bonferroni). Our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgpo.report.figures import style
from rgpo.report.stats.bootstrap import MIN_RUNS, Floats, Interval
from rgpo.report.stats.independent import simultaneous, student, summarize

LEVELS = np.geomspace(1e-3, 1.0, 13)  # nats
TABLE_LEVELS = (3, 6, 9)  # indices in LEVELS: 0.0056, 0.032, 0.18
RANGES = (0.0, 0.01, 0.1, 1.0, float("inf"))  # nats
BASELINE = "clip"
SETTINGS = ["state", "lr", "epochs"]
LOOKS = {"no gate": "trpo", "clip": "ppo", "sigmoid": "rgpo", "sign-aware": "rgpo_sign_aware", "spo": "spo"}
PENALIZED = " + KL"


class Change(NamedTuple):
    """An arm's gain at a level of KL and its difference from the baseline's, over num_states states."""

    task: str
    arm: str
    kl: float  # nats
    gain: Interval
    difference: Interval
    num_states: int


def read(folder: Path) -> pd.DataFrame:
    """All updates, with columns task, state, batch, arm, lr, epochs, kl, return_before, return_after; empty if not measured."""
    files = sorted(folder.glob("*.parquet"))
    return pd.concat([pd.read_parquet(file) for file in files], ignore_index=True) if files else pd.DataFrame()


def gains(rows: pd.DataFrame) -> dict[str, dict[str, Floats]]:
    """task -> arm -> gain (states, levels) at LEVELS; nan where an arm does not reach a level at a state."""
    found: dict[str, dict[str, Floats]] = {}
    rows = rows.assign(gain=rows.return_after - rows.return_before)
    for (task, arm), members in rows.groupby(["task", "arm"], sort=False):
        means = members.groupby(SETTINGS)[["kl", "gain"]].mean()
        curves = [_at_levels(state.sort_values("kl")) for _, state in means.groupby(level="state")]
        found.setdefault(str(task), {})[str(arm)] = np.array(curves)
    return found


def _at_levels(state: pd.DataFrame) -> Floats:
    kl, gain = state.kl.to_numpy(float), state.gain.to_numpy(float)
    return np.asarray(np.interp(np.log(LEVELS), np.log(kl), gain, left=np.nan, right=np.nan), float)


def changes(by_task: Mapping[str, Mapping[str, Floats]], confidence: float) -> list[Change]:
    """Every arm at those levels of the table that it and the baseline reach in at least three states."""
    found = []
    for task, by_arm in by_task.items():
        each = simultaneous(confidence, len(TABLE_LEVELS) * (len(by_arm) - 1))
        for arm, gain in by_arm.items():
            for level in TABLE_LEVELS:
                pair = np.stack([gain[:, level], by_arm[BASELINE][:, level]], 1)
                pair = pair[np.isfinite(pair).all(1)]
                if len(pair) >= MIN_RUNS:
                    difference = student(summarize(pair[:, 0] - pair[:, 1]), each)
                    own = student(summarize(pair[:, 0]), confidence)
                    found.append(Change(task, arm, float(LEVELS[level]), own, difference, len(pair)))
    return found


def by_range(rows: pd.DataFrame, confidence: float) -> dict[tuple[float, float], dict[str, Interval]]:
    """(low, high) KL in nats -> task -> mean gain of all arms' updates in that range, with Student's interval over states."""
    rows = rows.assign(gain=rows.return_after - rows.return_before)
    found: dict[tuple[float, float], dict[str, Interval]] = {}
    for low, high in pairwise(RANGES):
        inside = rows[(rows.kl > low) & (rows.kl <= high)]
        means = inside.groupby(["task", "state"]).gain.mean()
        found[low, high] = {
            str(task): student(summarize(values.to_numpy(float)), confidence) for task, values in means.groupby(level="task")
        }
    return found


def figure(by_task: Mapping[str, Mapping[str, Floats]], confidence: float) -> Figure:
    """A panel per task: each arm's mean gain over the KL that it reaches in all states, and the baseline's Student interval."""
    drawn, panels = style.grid(len(by_task), columns=2, height=2.6)
    looks = style.algorithm_lines(LOOKS.values())
    lines: dict[str, style.Line] = {}
    for axes, (task, by_arm) in zip(panels, by_task.items(), strict=True):
        for arm, gain in by_arm.items():
            line = looks[LOOKS[arm.removesuffix(PENALIZED)]]
            lines[arm] = (
                line._replace(dashes=style.DASHED, marker="") if arm.endswith(PENALIZED) else line._replace(dashes=style.SOLID)
            )
            axes.plot(LEVELS, gain.mean(0), color=line.color, linestyle=lines[arm].dashes, marker=lines[arm].marker)
        found = [student(summarize(column), confidence) for column in by_arm[BASELINE].T]
        axes.fill_between(
            LEVELS, [i.low for i in found], [i.high for i in found], color=looks["ppo"].color, alpha=0.12, linewidth=0
        )
        axes.axhline(0, color=style.GRAY, linewidth=0.6, zorder=1)
        style.log_scale(axes, "x")
        axes.set_title(task)
        axes.set_xlabel("KL(old || new), nats per state")
        axes.set_ylabel("gain in return")
    style.legend_below(drawn, lines)
    return drawn
