"""The first screen: does the paper reproduce, in one box computed from the verdicts of its claims."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import quote

from rgpo.errors import shell_word
from rgpo.report.claims.ledger import Judged, in_short
from rgpo.report.claims.verdict import CONTRADICTED, REPRODUCED, UNDECIDED, UNTESTED
from rgpo.report.tables.table import NOTHING

SIGNS = {REPRODUCED: "✓", CONTRADICTED: "✗", UNDECIDED: "?", UNTESTED: "–"}
MARKS = re.compile(r" ?\[[PQ]\]")  # of the paper's abstract and of a reader of its full text, which the ledger explains


class Sentence(NamedTuple):
    """One claim on the first screen."""

    id: str
    outcome: str
    sign: str
    claim: str
    ours: str
    paper: str
    note: str
    n: int
    figure: str  # link to its figure on the page; "" if there is none
    curves: str  # link to the curves of its metric; "" if there are none
    command: str  # that makes its evidence
    version: str


class Answer(NamedTuple):
    """The question, its answer in a word for each subject and in numbers, and a sentence per claim under its subject."""

    question: str
    words: str
    counts: str
    subjects: dict[str, list[Sentence]]


def answer(judged: Sequence[Judged], experiments: Collection[str]) -> Answer | None:
    """The answer from the paper's claims; None if there are none, or if no experiment here is evidence of any."""
    about_paper = [one for one in judged if not one.ours]
    named = {one.loaded.named.experiment for one in judged if one.loaded.named is not None}
    if not about_paper or not named & set(experiments):
        return None
    subjects: dict[str, list[Sentence]] = {}
    for one in about_paper:
        subjects.setdefault(one.loaded.subject, []).append(_sentence(one))
    found = [(one.loaded.subject, one.verdict.outcome) for one in about_paper]
    return Answer("Does RGPO reproduce?", *in_short(found), subjects)


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
    paper = "" if claim.paper == NOTHING else MARKS.sub("", claim.paper)
    return Sentence(
        claim.id,
        verdict.outcome,
        SIGNS[verdict.outcome],
        claim.claim,
        verdict.ours,
        paper,
        claim.note,
        verdict.n,
        figure,
        curves,
        command,
        verdict.version,
    )
