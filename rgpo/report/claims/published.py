"""Our returns next to published ones, by task, with the differences between the protocols."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

from rgpo.paths import conf_dir
from rgpo.report.claims.external import Anchor, Anchors
from rgpo.report.read.columns import EVAL, TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.stats.bootstrap import NAN, Interval
from rgpo.report.stats.independent import relative_change, summarize
from rgpo.report.tables.summary import setting
from rgpo.report.tables.table import Cell, Table, estimate, interval_cells, number, word
from rgpo.runtime.former import canonical_name

_PART = re.compile(r"override /(gate|penalty): (?:\$\{on_language:\w+,(\w+)\}|(\w+))")
_VERSION = re.compile(r" \((v\d+|no version)\)$")


def published_table(anchors: Anchors, groups: Sequence[Group], confidence: float) -> Table | None:
    """One row per group and published number of the same task, algorithm and length; None if there are none.

    Arms with another gate or penalty than the algorithm's own are left out. Numbers for another version of the environment are
    listed but not compared.
    """
    rows = []
    for group in groups:
        choices = {part: group.runs[0].config.get(f"choices.{part}") for part in ("gate", "penalty")}
        if not group.values(TRAIN, "final").size or not own_parts(group.algo).items() <= choices.items():
            continue
        for by_arm in anchors.values():
            for arm, by_task in by_arm.items():
                for task, anchor in by_task.items():
                    alike = without_version(task) == without_version(group.task) and canonical_name("algo", arm) == group.algo
                    if alike and group.used and group.used[0].planned_steps == anchor.steps:
                        rows.append(_row(group, task, anchor, confidence))
    columns = (
        word("task", "task"),
        word("label", "algorithm"),
        word("experiment", "experiment"),
        word("setting", "our setting"),
        number("ours", "ours", 4),
        number("sd", "± sd", 3),
        number("n", "n"),
        number("theirs", "published", 4),
        number("their_sd", "± sd", 3),
        number("their_n", "n"),
        word("of", "published for"),
        estimate("percent", "ours over theirs, %", sign=True),
        word("source", "source"),
        word("differs", "protocol differs in"),
    )
    caption = (
        "Return at the end of our runs, in training or in evaluation as it was published, beside published returns after as many "
        f"steps (results/external). Brackets: {100 * confidence:g} % Fieller interval with both errors, none for fewer than 3 "
        "seeds or without a spread over seeds; numbers of evaluation or of another version of the environment are not compared. "
        "The last column states how a protocol differs from ours, beside settings such as the learning rate of an experiment."
    )
    return Table("published", "Published returns", caption, columns, tuple(rows), "task") if rows else None


@functools.cache
def own_parts(algo: str) -> Mapping[str, str]:
    """The gate and penalty of an algorithm on control tasks, as conf/algo selects them; empty for an algorithm without a file."""
    path = conf_dir() / "algo" / f"{algo}.yaml"
    if not path.is_file():
        return {}
    found = {part: control or plain for part, control, plain in _PART.findall(path.read_text(encoding="utf-8"))}
    return {part: name for part, name in found.items() if name != "null"}


def without_version(task: str) -> str:
    """A task's name without the environment's version: hopper for "hopper (v3)"."""
    return _VERSION.sub("", task)


def _row(group: Group, task: str, anchor: Anchor, confidence: float) -> dict[str, Cell]:
    ours, theirs = summarize(group.values(EVAL if anchor.metric == EVAL else TRAIN, "final")), anchor.summary
    row: dict[str, Cell] = {"task": group.task, "label": group.label, "setting": setting(group.used[0])}
    row["experiment"] = group.runs[0].experiment
    row |= {"ours": ours.mean, "sd": ours.sd, "n": ours.n, "theirs": theirs.mean, "their_sd": theirs.sd, "their_n": theirs.n}
    row["of"] = f"{task}, {anchor.metric}"
    found = relative_change(ours, theirs, confidence)
    if task != group.task or anchor.metric != TRAIN:
        found = Interval(NAN, NAN, NAN)
    elif math.isnan(theirs.sd):  # no spread over seeds was published
        found = Interval(found.value, NAN, NAN)
    return row | interval_cells("percent", found) | {"source": anchor.source, "differs": anchor.differs}
