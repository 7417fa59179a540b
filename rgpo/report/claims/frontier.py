"""The rule on two metrics along each run: one arm has the larger reward at equal KL."""

from __future__ import annotations

from dataclasses import dataclass

from rgpo.errors import require
from rgpo.report.claims.evidence import Sample
from rgpo.report.claims.rules import FAILS, HOLDS, OPEN, Finding, Number, Rule
from rgpo.report.stats.independent import deciding_size, simultaneous
from rgpo.report.tables.matched import matched
from rgpo.report.tables.table import percent, plain


@dataclass(frozen=True)
class Dominance(Rule):
    """One arm has the larger y at every level of x that both arms reach."""

    x: str  # such as kl/eval_ref_sequence
    y: str  # such as reward/eval_proxy_change
    levels: int = 4

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 50, "levels", self.levels, "give 1 to 50 levels of x")
        require(self.x != self.y, "y", self.y, "it is x, too; give another metric")

    def numbers(self) -> list[Number]:
        return []

    def curves(self) -> list[str]:
        return [self.x, self.y]

    def sentence(self) -> str:
        return (
            f"at each of {self.levels} levels of {self.x} that all runs reach, {self.y} is larger, by intervals that hold "
            "together; contradicted if it is smaller at one of them"
        )

    def judge(self, task: str, arm: Sample, baseline: Sample, confidence: float) -> Finding:
        found = matched(arm.paths(self.x, self.y), baseline.paths(self.x, self.y), self.levels, confidence)
        if not found:
            return Finding(OPEN, "the runs have no common range")
        last = found[-1]
        text = f"{percent(last.change)} at {plain(last.level, 2)}"
        text += f" (at {plain(found[0].level, 2)}: {percent(found[0].change)})" if len(found) > 1 else ""
        if all(m.difference.low > 0 for m in found):
            return Finding(HOLDS, text)
        if any(m.difference.high < 0 for m in found):
            return Finding(FAILS, text)
        n = min(arm.n, baseline.n)
        each = simultaneous(confidence, self.levels)
        sizes = {m: deciding_size(m.difference, n, abs(m.difference.value), each, 2) for m in found if m.difference.low <= 0}
        against = [size for m, size in sizes.items() if m.difference.value < 0]  # a single level where it is smaller would decide
        return Finding(OPEN, text, min(against) if against else max(sizes.values(), default=0))
