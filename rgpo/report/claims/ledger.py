"""The ledger: every claim with our number, the paper's number and the rule's verdict, and its insertion in a markdown file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rgpo.atomic import write_text
from rgpo.errors import ConfigError
from rgpo.report.claims.claim import Loaded
from rgpo.report.claims.external import Anchors
from rgpo.report.claims.theory import Theory
from rgpo.report.claims.verdict import CONFIDENCE, CONTRADICTED, OUTCOMES, REPRODUCED, UNDECIDED, UNTESTED, Verdict, judge
from rgpo.report.read.repeated import Repeated
from rgpo.report.read.run import Problem, Run
from rgpo.report.tables.table import NOTHING, Table, word
from rgpo.runtime.reader import Unreadable, printable, read_text

START, END = "<!-- ledger -->", "<!-- /ledger -->"
OURS = "ours"
TABLES = ("ledger", "own_statements")  # names of the tables with the paper's claims and with our own statements
SHORT = {REPRODUCED: "yes", CONTRADICTED: "no", UNDECIDED: "undecided", UNTESTED: "not tested"}


@dataclass(frozen=True)
class Evidence:
    """All data for the verdicts: runs of all experiments, the theory's tables, published numbers and repeated runs."""

    runs: Sequence[Run]
    theory: Theory
    anchors: Anchors
    repeated: Mapping[str, Repeated]


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    loaded: Loaded
    verdict: Verdict

    @property
    def ours(self) -> bool:
        """True for our own statements, which have no bearing on the paper."""
        return self.loaded.claim.stated_by == OURS


def in_short(found: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """One word per subject, and the number of claims with each verdict, given (subject, verdict) of every claim."""
    counts = Counter(outcome for _, outcome in found)
    words = []
    for subject in dict.fromkeys(subject for subject, _ in found):
        here = Counter(outcome for name, outcome in found if name == subject)
        each = [
            SHORT[outcome] if len(here) == 1 else f"{here[outcome]} {SHORT[outcome]}" for outcome in OUTCOMES if here[outcome]
        ]
        words.append(f"{subject}: {', '.join(each)}")
    listed = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    text = "; ".join(words)
    return (
        f"{text[0].upper()}{text[1:]}",
        f"The paper's {len(found)} claims: {listed}, at our scale and settings, which are not the paper's.",
    )


def judge_all(claims: Sequence[Loaded], evidence: Evidence) -> tuple[list[Judged], list[Problem]]:
    """Judge every claim, in the given order; returns a problem for each that cannot be judged."""
    found, problems = [], []
    for loaded in claims:
        try:
            verdict = judge(loaded, evidence.runs, evidence.theory, evidence.anchors, evidence.repeated)
        except (ArithmeticError, ValueError) as error:  # from unusual numbers, which must not affect other claims
            problems.append(Problem(f"claims/{loaded.path.name}", f"cannot be judged ({printable(str(error))})"))
            verdict = Verdict(UNTESTED, "its numbers cannot be judged", NOTHING)
        found.append(Judged(loaded, verdict))
    return found, problems


def ledger(judged: Sequence[Judged]) -> list[Table]:
    """A table with the paper's claims and one with our own statements; empty ones are omitted."""
    rows: dict[bool, list[dict[str, str | float]]] = {False: [], True: []}
    for one in judged:
        claim, verdict = one.loaded.claim, one.verdict
        rule = one.loaded.rule or one.loaded.theory
        assert rule is not None
        setting = "; ".join(filter(None, (verdict.setting, claim.note)))
        row: dict[str, str | float] = {"id": claim.id, "claim": claim.claim, "setting": setting, "ours": verdict.ours}
        row |= {"paper": claim.paper, "verdict": verdict.outcome, "rule": f"reproduced if {rule.sentence()}"}
        row |= {"version": verdict.version, "quote": claim.quote, "source": claim.source, "changes": claim.changes_our_mind}
        rows[one.ours].append(row)
    shown = [(TABLES[0], "Ledger", rows[False], _CAPTION), (TABLES[1], "Our own statements", rows[True], _OWN)]
    return [
        Table(name, title, caption.format(100 * CONFIDENCE), _COLUMNS, tuple(found))
        for name, title, found, caption in shown
        if found
    ]


_COLUMNS = (
    word("id", "id"),
    word("claim", "claim"),
    word("setting", "our setting"),
    word("ours", "our number"),
    word("paper", "paper"),
    word("verdict", "verdict"),
    word("rule", "rule"),
    word("version", "evidence"),
)
_CAPTION = (
    "Verdicts at our scale and settings, which are not the paper's, from the runs that each claim names (claims/*.yaml). Changes "
    "are against the claim's baseline, as independent samples, with {:g} % Welch or Fieller intervals; 'undecided' where an "
    "interval allows both, a task or seed is missing, or the null arm was not run or passes too; A/A: by how much two sets of "
    "runs of the baseline itself may differ; null arm: its numbers through the same rule. Evidence: the commit, or the digest "
    "of the code that determines numbers, with which the runs were made, and whether that code has changed since. No "
    "adjustment over claims; a claim about several tasks needs all of them. [P] abstract, [Q] a reader of the full text."
)
_OWN = "What we state ourselves; none of it decides a verdict about the paper. Intervals of {:g} %, as above."


def around(path: Path) -> tuple[str, str]:
    """The text before and after the table in a file.

    Raises: ConfigError if the file cannot be read, or has no markers.
    """
    try:
        before, found, rest = read_text(path).partition(START)
    except Unreadable as error:
        raise ConfigError(f"ledger={path}: cannot be used ({error}); give an existing markdown file") from None
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ConfigError(f"ledger={path}: it has no lines {START} and {END}; put them where the table belongs")
    return before, after


def renew(path: Path, tables: Sequence[Table]) -> None:
    """Replace the text between a file's markers with the tables.

    Raises: ConfigError if the file cannot be read or written, or has no markers.
    """
    before, after = around(path)
    heads = ["" if table.name == TABLES[0] else f"{table.title}:\n\n" for table in tables]
    text = "\n".join(f"{head}{table.markdown()}\n{table.caption}\n" for head, table in zip(heads, tables, strict=True))
    try:
        write_text(path, f"{before}{START}\n{text}{END}{after}")
    except OSError as error:
        raise ConfigError(f"ledger={path}: cannot be used ({error.strerror}); give an existing markdown file") from error
