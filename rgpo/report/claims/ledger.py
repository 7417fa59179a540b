"""The ledger: every claim with our number, the paper's, and the verdict of its rule; and its place in a markdown file."""

from __future__ import annotations

from pathlib import Path

from rgpo.atomic import write_text
from rgpo.errors import ConfigError
from rgpo.report.claims.claims import CLAIMS, Evidence
from rgpo.report.tables.table import Table, word
from rgpo.runtime.reader import Unreadable, read_text

START, END = "<!-- ledger -->", "<!-- /ledger -->"


def ledger(evidence: Evidence) -> Table:
    """One row per claim."""
    rows = []
    for claim in CLAIMS:
        verdict = claim.judge(evidence)
        row = {"id": claim.id, "claim": claim.claim, "setting": verdict.setting, "ours": verdict.ours}
        rows.append(row | {"paper": claim.paper, "verdict": verdict.outcome, "rule": claim.rule})
    columns = (
        word("id", "id"),
        word("claim", "claim"),
        word("setting", "our setting"),
        word("ours", "our number"),
        word("paper", "paper"),
        word("verdict", "verdict"),
        word("rule", "rule"),
    )
    caption = (
        "Verdicts at our scale and settings, which are not the paper's. Our numbers: relative changes of algo=rgpo against "
        f"algo=ppo, paired by seed, unless the claim says otherwise, with {100 * evidence.settings.confidence:g} % Student or "
        "Fieller intervals (Vangel's for the coefficient of variation); 'not testable here' where there are no data or the "
        "interval allows both. No adjustment over claims; a claim about several tasks needs all of them. [P] abstract, [Q] a "
        "reader of the full text."
    )
    return Table("ledger", "Ledger", caption, columns, tuple(rows))


def around(path: Path) -> tuple[str, str]:
    """The text before and after the table of a file.

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


def renew(path: Path, table: Table) -> None:
    """Replace the text between the file's markers by the table.

    Raises: ConfigError if the file cannot be read or written, or has no markers.
    """
    before, after = around(path)
    try:
        write_text(path, f"{before}{START}\n{table.markdown()}\n{table.caption}\n{END}{after}")
    except OSError as error:
        raise ConfigError(f"ledger={path}: cannot be used ({error.strerror}); give an existing markdown file") from error
