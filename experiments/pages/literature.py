"""The rendered tables of our returns next to published ones."""

from __future__ import annotations

import math
from dataclasses import replace

from experiments.pages.results import EVALUATED, Results, arm_of, chosen, not_run
from rgpo.report.claims.external import Anchor, read_external
from rgpo.report.claims.published import published_table, without_version
from rgpo.report.stats.independent import Summary, summarize, welch
from rgpo.report.tables.table import Table, estimate, interval_cells, word


def published(found: Results, experiment: str, arm: str) -> str:
    """Returns of an arm ``gate+penalty`` next to published ones for the same environments and number of steps."""
    groups = [group for group in found.groups.get(experiment, []) if arm_of(group) == arm]
    table = published_table(read_external(found.folder)[0], groups, found.settings.confidence)
    if table is None:
        return not_run(experiment)
    rows = tuple(row for row in table.rows if not math.isnan(float(row["percent_low"])))
    shown = ("task", "ours", "sd", "n", "theirs", "their_sd", "their_n", "percent", "source")
    return chosen(replace(table, rows=rows), shown)


def evaluated(found: Results, experiment: str, algo: str) -> str:
    """Evaluation returns of an algorithm's arms next to those of other projects, and their difference from the first of these."""
    groups = [group for group in found.groups.get(experiment, []) if group.algo == algo]
    if not groups:
        return f"`rgpo-run -m experiment={experiment} algo={algo}` has not been run."
    theirs = _evaluations(found, algo)
    first = next(iter(theirs), "")
    rows: list[dict[str, str | float]] = []
    for group in groups:
        ours = summarize(group.values(*EVALUATED))
        row: dict[str, str | float] = {"task": group.task, "label": group.label, "n": ours.n, "ours": _words(ours)}
        published = {source: by_task[group.task] for source, by_task in theirs.items() if group.task in by_task}
        row |= {source: _words(summary) for source, summary in published.items()}
        if first in published:
            row |= interval_cells("minus", welch(ours, published[first], found.settings.confidence)[0])
        rows.append(row)
    others = (word(source, source) for source in theirs)
    columns = (
        *(word("task", "task"), word("label", "algorithm"), word("ours", "ours"), *others),
        estimate("minus", f"ours minus {first}", sign=True),
    )
    return Table("evaluated", "", "", columns, tuple(dict.fromkeys(theirs, "") | row for row in rows)).markdown()


def _evaluations(found: Results, algo: str) -> dict[str, dict[str, Summary]]:
    """Source -> task (ignoring the environment's version) -> published evaluation return."""
    sources: dict[str, dict[str, Summary]] = {}
    for by_arm in read_external(found.folder)[0].values():
        for task, anchor in by_arm.get(algo, {}).items():
            if anchor.metric == EVALUATED[0]:
                sources.setdefault(_short(anchor), {})[without_version(task)] = anchor.summary
    return sources


def _short(anchor: Anchor) -> str:
    """The short name of a source: Tianshou for "Tianshou, MuJoCo benchmark"."""
    return anchor.source.partition(",")[0].removesuffix(" documentation")


def _words(sample: Summary) -> str:
    """Mean, standard deviation and number of runs as text: "1,803 ± 46 (3)"; without the deviation if it is unknown."""
    spread = "" if math.isnan(sample.sd) else f" ± {sample.sd:,.0f}"
    return f"{sample.mean:,.0f}{spread} ({sample.n})"
