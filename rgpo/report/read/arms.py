"""Arms: groups that differ only in how strongly the policy is constrained, and so form a curve of results over KL."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rgpo.report.read.groups import Group, distinguishing_keys, identity, short_label
from rgpo.report.read.run import Run

STRENGTHS = (  # config keys: strength of the penalty, width of the clip, size of the trust region
    *("penalty.coef", "penalty.kl_target", "update.kl_max"),
    *("gate.eps_low", "gate.eps_high"),
)


@dataclass(frozen=True)
class Arm:
    """Groups of one task whose configurations differ only in STRENGTHS and the seed."""

    task: str
    algo: str
    label: str  # algorithm and values of the other config keys that distinguish its variants
    groups: tuple[Group, ...]

    @property
    def by_seed(self) -> dict[int, list[Run]]:
        """Seed -> its runs, for seeds that have a run in every group."""
        seeds = set.intersection(*({run.seed for run in group.used} for group in self.groups))
        return {seed: [run for group in self.groups for run in group.used if run.seed == seed] for seed in sorted(seeds)}


def arms_of(groups: Sequence[Group]) -> list[Arm]:
    """Combine groups into arms, in order; an arm may consist of a single group."""
    found: dict[tuple[str, str, Hashable], list[Group]] = defaultdict(list)
    runs: dict[str, list[Run]] = defaultdict(list)
    for group in groups:
        found[group.task, group.algo, identity(group.runs[0], STRENGTHS)].append(group)
        runs[group.algo] += group.runs
    keys = {algo: [key for key in distinguishing_keys(members) if key not in STRENGTHS] for algo, members in runs.items()}
    return [
        Arm(task, algo, " ".join([algo, *filter(None, [short_label(members[0].runs[0], keys[algo])])]), tuple(members))
        for (task, algo, _), members in found.items()
    ]
