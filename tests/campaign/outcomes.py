"""The ways in which a case can end, kinds of cases, and the table of a campaign."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HELD = "held"  # equal results, or properly done
REFUSED = "refused properly"  # exit code 1 or 2 with a sentence, and nothing lost
WRONG = "silently wrong"  # exit code 0 with other numbers, with missing rows, or with damage that no output names
TRACEBACK = "traceback"
HANG = "hang"
BROKEN = "campaign error"  # a fault of the campaign itself
OUTCOMES = (HELD, REFUSED, WRONG, TRACEBACK, HANG)
BAD = (WRONG, TRACEBACK, HANG, BROKEN)


class Result(NamedTuple):
    """The end of one case."""

    outcome: str
    detail: str = ""


HELD_WELL = Result(HELD)


@dataclass(frozen=True)
class Case:
    """One case: its number, its generator, an empty folder that is deleted afterwards, and the folder that all cases share."""

    number: int
    rng: random.Random
    folder: Path
    shared: Path


@dataclass(frozen=True)
class Kind:
    """A row of the table."""

    name: str
    run: Callable[[Case], Result]
    full: int  # cases of the full campaign
    share: int = 0  # cases of `make test`
    timeout_s: float = 400.0  # of one case with all its commands
    must_hold: bool = False  # a refusal misses the goal

    def failed(self, result: Result) -> bool:
        """True if the result misses the goal of this kind."""
        return result.outcome in BAD or (self.must_hold and result.outcome != HELD)


class Finished(NamedTuple):
    """A case with its result and its CPU time in seconds."""

    kind: Kind
    number: int
    result: Result
    seconds: float


def table(finished: Sequence[Finished]) -> str:
    """One row per kind and one for all, in markdown."""
    rows = [("kind of case", "cases", *OUTCOMES)]
    for kind in dict.fromkeys(case.kind for case in finished):
        rows.append(_row(kind.name, [case.result.outcome for case in finished if case.kind is kind]))
    rows.append(_row("**all**", [case.result.outcome for case in finished]))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(OUTCOMES) + 1), *lines[1:]])


def _row(name: str, outcomes: Sequence[str]) -> tuple[str, ...]:
    count = Counter(outcomes)
    return (name, f"{len(outcomes):,}", *(f"{count[outcome]:,}" for outcome in OUTCOMES))


def failures(finished: Sequence[Finished], seed: int) -> list[str]:
    """For each case that misses its goal: outcome, the command that repeats it, and the reason."""
    found = [case for case in finished if case.kind.failed(case.result)]
    again = "python -m tests.campaign --seed {} --only '{}' --case {}"
    return [f"{c.result.outcome}: `{again.format(seed, c.kind.name, c.number)}`: {shortened(c.result.detail)}" for c in found]


def shortened(text: str) -> str:
    """A text in one line of ASCII."""
    return " ".join(ascii(text)[1:-1].replace("\\n", " ").split())[:500]
