"""The ledger: every claim with our number, the paper's and the verdict that its rule gives; and its place in a markdown file."""

from __future__ import annotations

from pathlib import Path

from rgpo.errors import ConfigError
from rgpo.report.claims.claims import CLAIMS, Evidence
from rgpo.report.tables.table import Table, word

START, END = "<!-- ledger -->", "<!-- /ledger -->"


def table(evidence: Evidence) -> Table:
    """One row a claim."""
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


def renew(path: Path, made: Table) -> None:
    """Replace what stands between the file's markers. ConfigError if it cannot be read, written or has no markers."""
    try:
        text = path.read_text(encoding="utf-8")
        before, found, rest = text.partition(START)
        _, ended, after = rest.partition(END)
        if not found or not ended:
            raise ConfigError(f"ledger={path}: it has no lines {START} and {END}; put them where the table belongs")
        aside = path.with_name(f".{path.name}.writing")
        aside.write_text(f"{before}{START}\n{made.markdown()}\n{made.caption}\n{END}{after}", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ConfigError(f"ledger={path}: cannot be used ({error.strerror}); give an existing markdown file") from error
