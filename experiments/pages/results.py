"""The runs in a results folder, read once for all pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from experiments.pages import one_update
from rgpo.paths import claims_dir
from rgpo.report.claims.claim import declared_experiments, read_claims
from rgpo.report.claims.external import read_external
from rgpo.report.claims.ledger import START
from rgpo.report.cli import parse
from rgpo.report.figures import learning_curves
from rgpo.report.read.columns import EVAL, GOLD, KL, KL_REF, LENGTH, PROXY, TRAIN, TRUNCATED
from rgpo.report.read.groups import Group, group_runs
from rgpo.report.read.load import experiments, read_runs
from rgpo.report.read.workers import workers
from rgpo.report.settings import Settings
from rgpo.report.stats.bootstrap import Floats
from rgpo.report.tables.table import Table

LEDGER = Path(__file__).parents[1] / "README.md"
TAIL, ESS, SPIKES = ("ratio/tail_index", "median"), ("ess/ratio", "mean"), (KL, "share above 0.04")
EVALUATED = (EVAL, "final")
PER_TOKEN = ("kl/ref_exact", "final")
CLIPPED, COEF = ("grad/clip_fraction", "mean"), ("kl/coef", "share above 0.001001")  # 0.001 is the floor of the coefficient
NUMBERS = (TAIL, ESS, SPIKES, PER_TOKEN, CLIPPED, COEF)  # beside the report's own
COLUMNS = {*learning_curves.COLUMNS, TRAIN, KL, PROXY, GOLD, KL_REF, LENGTH, TRUNCATED, *(column for column, _ in NUMBERS)}


class Judged(NamedTuple):
    """A claim in the paper with its subject and verdict."""

    subject: str
    id: str
    claim: str
    verdict: str


class Results:
    """Groups of runs by experiment, and the report settings used to summarize them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: Settings = parse([f"results_dir={folder}"])[0]

    @cached_property
    def groups(self) -> Mapping[str, list[Group]]:
        """Experiment -> groups, for packaged experiments with finished runs; readers' own runs never appear on a page."""
        found = {}
        for name in sorted(declared_experiments() & set(experiments(self.folder, None))):
            with workers(0) as serial:  # no worker processes, so that tests can call this
                options = (COLUMNS, self.settings.final_fraction, self.settings.thresholds, serial, NUMBERS)
                runs, _ = read_runs(self.folder / name, *options)
            found[name] = [group for group in group_runs(runs)[0] if not group.provisional]
        return {name: groups for name, groups in found.items() if groups}

    def of(self, algo: str) -> dict[str, list[Group]]:
        """Experiment -> groups of the algorithm and of PPO on the same tasks, for experiments with the algorithm."""
        found = {}
        for name, groups in self.groups.items():
            tasks = {group.task for group in groups if group.algo == algo}
            chosen = [group for group in groups if group.task in tasks and group.algo in (algo, "ppo")]
            if chosen:
                found[name] = chosen
        return found

    @cached_property
    def single_updates(self) -> Mapping[str, Mapping[str, Floats]]:
        """task -> arm -> gains in return of single updates over KL; empty if not measured."""
        rows = one_update.read(self.folder / "one_update")
        return one_update.gains(rows) if len(rows) else {}

    @cached_property
    def claims(self) -> list[Judged]:
        """The paper's claims with their verdicts, from the table that `rgpo-report ledger=` made from these results."""
        _, _, text = LEDGER.read_text(encoding="utf-8").partition(START)
        first = [
            line.strip("| ").split(" | ") for line in takewhile(lambda line: line.startswith("|"), text.strip().splitlines())
        ]
        head, found = first[0], first[2:]
        places = [head.index(name) for name in ("id", "claim", "verdict")]
        loaded, _ = read_claims(claims_dir() / "rgpo", experiments(self.folder, None), read_external(self.folder)[0])
        subjects = {one.claim.id: one.subject for one in loaded}
        return [Judged(subjects[row[places[0]]], *(row[place] for place in places)) for row in found]


def arm_of(group: Group) -> str:
    """The name of an arm in a factorial: its gate and penalty, such as ``clip+none``."""
    config = group.used[0].config
    return f"{config['choices.gate']}+{config['choices.penalty']}"


def not_run(experiment: str) -> str:
    """The sentence in place of a table, for an experiment without finished runs."""
    return f"`rgpo-run -m experiment={experiment}` has not been run."


def chosen(table: Table, keys: tuple[str, ...]) -> str:
    """A table as markdown with only the given columns."""
    return replace(table, columns=tuple(column for column in table.columns if column.key in keys)).markdown()
