"""Our returns beside published ones, task by task, with whatever differs between the protocols."""

from __future__ import annotations

from collections.abc import Sequence

from rgpo.report.claims.external import Anchor
from rgpo.report.claims.verdict import Anchors
from rgpo.report.read.columns import TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.stats.bootstrap import Interval
from rgpo.report.stats.independent import relative_change, summarize
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import Cell, Table, estimate, interval_cells, number, word
from rgpo.runtime.former import canonical_name


def published_table(anchors: Anchors, groups: Sequence[Group], confidence: float) -> Table | None:
    """One row for each of our groups and each published number of its task, algorithm and length; None without any."""
    rows = []
    for group in groups:
        values = group.values(TRAIN, "final")
        for by_arm in anchors.values():
            for arm, by_task in by_arm.items():
                anchor = by_task.get(group.task)
                alike = anchor is not None and group.used and group.used[0].config.get("total_env_steps") == anchor.steps
                if anchor is not None and alike and canonical_name("algo", arm) == group.algo and values.size:
                    rows.append(_row(group, anchor, confidence))
    columns = (
        word("task", "task"),
        word("label", "algorithm"),
        word("setting", "our setting"),
        number("ours", "ours", 4),
        number("sd", "± sd", 3),
        number("n", "n"),
        number("theirs", "published", 4),
        number("their_sd", "± sd", 3),
        number("their_n", "n"),
        estimate("percent", "ours over theirs, %", sign=True),
        word("source", "source"),
        word("differs", "protocol differs in"),
    )
    caption = (
        "Return (train) at the end of our runs beside published returns after as many steps (results/external). Brackets: "
        f"{100 * confidence:g} % Fieller interval with both errors, none for fewer than 3 seeds or without a spread over "
        "seeds. The last column states how a protocol differs from ours."
    )
    return Table("published", "Published returns", caption, columns, tuple(rows), "task") if rows else None


def _row(group: Group, anchor: Anchor, confidence: float) -> dict[str, Cell]:
    ours, theirs = summarize(group.values(TRAIN, "final")), anchor.summary
    found = relative_change(ours, theirs, confidence)
    known = theirs.sd == theirs.sd  # nan where no spread over seeds was published
    row: dict[str, Cell] = {"task": group.task, "label": group.label, "setting": setting(group.used[0])}
    row |= {"ours": ours.mean, "sd": ours.sd, "n": ours.n, "theirs": theirs.mean, "their_sd": theirs.sd, "their_n": theirs.n}
    row |= interval_cells("percent", found if known else Interval(found.value, float("nan"), float("nan")))
    return row | {"source": anchor.source, "differs": anchor.differs}
