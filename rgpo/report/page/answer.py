"""The first screen: whether the paper reproduces, computed from the verdicts on its claims."""

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
MARKS = re.compile(r" ?\[[PQ]\]")  # marks for abstract and full text, which the ledger explains


class Sentence(NamedTuple):
    """A claim as shown on the first screen."""

    id: str
    outcome: str
    sign: str
    claim: str
    ours: str
    paper: str
    note: str
    n: int
    figure: str  # link to its figure on the page, or ""
    curves: str  # link to the curves of its metric, or ""
    command: str  # command that makes its evidence
    version: str


class Answer(NamedTuple):
    """The question, its answer in one word per subject and in numbers, and the claims by subject."""

    question: str
    words: str
    counts: str
    subjects: dict[str, list[Sentence]]


def answer(judged: Sequence[Judged], experiments: Collection[str]) -> Answer | None:
    """The answer from the paper's claims; None if there are none, or if no experiment here is evidence for one."""
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
