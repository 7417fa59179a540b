"""The first screen: does the paper reproduce, in one box computed from the verdicts of its claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import quote

from rgpo.errors import shell_word
from rgpo.report.claims.ledger import Judged
from rgpo.report.claims.verdict import CONTRADICTED, REPRODUCED, UNDECIDED, UNTESTED
from rgpo.report.tables.table import NOTHING

SIGNS = {REPRODUCED: "✓", CONTRADICTED: "✗", UNDECIDED: "?", UNTESTED: "–"}
WORDS = {REPRODUCED: "yes", CONTRADICTED: "no", UNDECIDED: "undecided", UNTESTED: "not tested"}


class Sentence(NamedTuple):
    """One claim on the first screen."""

    id: str
    outcome: str
    sign: str
    claim: str
    ours: str
    paper: str
    n: int
    figure: str  # link to its figure on the page; "" if there is none
    curves: str  # link to the curves of its metric; "" if there are none
    command: str  # that makes its evidence
    version: str


class Answer(NamedTuple):
    """The question, its answer in plain words, and a sentence per claim."""

    question: str
    headline: str
    explained: str
    counts: dict[str, int]  # outcome -> claims of the paper
    sentences: tuple[Sentence, ...]


def answer(judged: Sequence[Judged], experiments: Collection[str]) -> Answer | None:
    """The answer from the paper's claims; None if there are none, or if no experiment here is evidence of any."""
    about_paper = [one for one in judged if not one.ours]
    named = {one.loaded.named.experiment for one in judged if one.loaded.named is not None}
    if not about_paper or not named & set(experiments):
        return None
    found = Counter(one.verdict.outcome for one in about_paper)
    counts = {outcome: found[outcome] for outcome in WORDS}
    named_counts = ", ".join(f"{number} {WORDS[outcome]}" for outcome, number in counts.items() if number)
    return Answer(
        "Does RGPO reproduce?",
        f"{_in_a_word(counts)}: of the paper's {len(about_paper)} claims {named_counts}.",
        _explained(about_paper),
        counts,
        tuple(map(_sentence, about_paper)),
    )


def _in_a_word(counts: dict[str, int]) -> str:
    decided, total = counts[REPRODUCED] + counts[CONTRADICTED], sum(counts.values())
    if counts[REPRODUCED] == total:
        return "Yes"
    if counts[UNTESTED] == total:
        return "Not tested here"
    if counts[CONTRADICTED] > counts[REPRODUCED]:
        return "Mostly not" if decided == total else "Rather not, so far"
    return "In part" if decided == total else "Not decided yet"


def _explained(judged: Sequence[Judged]) -> str:
    """Counts of the claims that reproduce, of the theory and of training runs."""
    theory = [one for one in judged if one.loaded.theory is not None]
    training = [one for one in judged if one.loaded.theory is None]
    good = [sum(one.verdict.outcome == REPRODUCED for one in side) for side in (theory, training)]
    bad = sum(one.verdict.outcome == CONTRADICTED for one in training)
    text = f"About its theory and cost, {good[0]} of {len(theory)} claims reproduce."
    return f"{text} About training runs, {good[1]} of {len(training)} do{f', and {bad} are contradicted' if bad else ''}."


def _sentence(one: Judged) -> Sentence:
    claim, verdict, named = one.loaded.claim, one.verdict, one.loaded.named
    judged = verdict.outcome != UNTESTED
    if named is None:
        figure, curves, command = "", "", "python -m experiments.theory"
    else:
        columns = one.loaded.columns
        curves = f"#go={quote(named.experiment)}&show={quote(columns[-1])}" if judged and columns else ""
        figure = f"#figures/claim_{quote(one.loaded.path.stem)}" if curves else ""
        command = f"rgpo-run -m experiment={shell_word(named.experiment)}"
    paper = "" if claim.paper in ("", NOTHING) else claim.paper
    return Sentence(
        claim.id,
        verdict.outcome,
        SIGNS[verdict.outcome],
        claim.claim,
        verdict.ours,
        paper,
        verdict.n,
        figure,
        curves,
        command,
        verdict.version,
    )
