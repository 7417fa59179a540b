"""Tables of control experiments that sweep a setting, with a row per task and arm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from experiments.pages.arms import EMPTY, Cells
from experiments.pages.results import Results, arm_of, not_run
from rgpo.report.read.columns import TRAIN
from rgpo.report.read.groups import Group
from rgpo.report.stats.bootstrap import Interval
from rgpo.report.stats.independent import Summary, combination, relative_change, simultaneous, summarize, welch
from rgpo.report.tables.table import Table, estimate, interval_cells, number, plain, word

FIRST = (word("task", "task"), word("arm", "gate + penalty"), number("n", "n"))


def grid(found: Results, experiment: str, key: str, column: str, *statistic: str) -> str:
    """Means over seeds, of returns with standard deviations and of shares in percent, with a column per value of a setting."""
    scale = 100 if statistic[0] == "share" else 1
    rows: dict[tuple[str, str], Cells] = {}
    settings = set()
    for arm, setting, group in _cells(found, experiment, key):
        values = group.values(column, " ".join(statistic))
        spread = f" ± {values.std(ddof=1):,.0f}" if len(values) > 1 and column == TRAIN else ""
        row = rows.setdefault((group.task, arm), {"task": group.task, "arm": arm})
        row["n"] = min(int(row.get("n", len(values))), len(values))
        row[setting] = f"{values.mean():,.0f}{spread}" if column == TRAIN else plain(scale * float(values.mean()), 2)
        settings.add(setting)
    if not rows:
        return not_run(experiment)
    blank: Cells = dict.fromkeys(settings, "")
    columns = [word(setting, f"{_leaf(key)} {setting}") for setting in sorted(settings, key=float)]
    plain_first = sorted(rows, key=lambda row: (row[0], " " in row[1]))
    return Table("grid", "", "", (*FIRST, *columns), tuple({**blank, **rows[row]} for row in plain_first)).markdown()


def losses(found: Results, experiment: str, key: str, low: str, high: str, reference: str) -> str:
    """Returns lost by raising a setting from `low` to `high` (Welch), and that loss minus the loss of the arm `reference`."""
    samples = _samples(found, experiment, key)
    rows: list[Cells] = []
    for (task, arm), at in samples.items():
        theirs = samples.get((task, reference), {})
        if {low, high} <= at.keys() & theirs.keys():
            ends = (at[low], at[high])
            row: Cells = {"task": task, "arm": arm, "n": min(one.n for one in ends), low: ends[0].mean, high: ends[1].mean}
            row |= interval_cells("loss", welch(*ends, found.settings.confidence)[0])
            both = combination((*ends, theirs[low], theirs[high]), (1, -1, -1, 1), found.settings.confidence)[0]
            row |= interval_cells("beyond", both if arm != reference else EMPTY)
            rows.append(row)
    if not rows:
        return not_run(experiment)
    columns = [number(setting, f"{_leaf(key)} {setting}", 4) for setting in (low, high)]
    columns += [estimate("loss", "loss", sign=True), estimate("beyond", f"minus the loss of {reference}", sign=True)]
    return Table("losses", "", "", (*FIRST, *columns), tuple(rows)).markdown()


def growth(found: Results, experiment: str, key: str, low: str, high: str, column: str, *statistic: str) -> str:
    """The mean of a metric at `high` over that at `low`, as a factor with Fieller's interval, for every arm."""
    samples = _samples(found, experiment, key, column, " ".join(statistic))
    rows: list[Cells] = []
    for (task, arm), at in samples.items():
        if {low, high} <= at.keys():
            change = relative_change(at[high], at[low], found.settings.confidence)
            row: Cells = {"task": task, "arm": arm, "n": min(at[low].n, at[high].n)}
            row |= interval_cells("factor", Interval(*(1 + percent / 100 for percent in change)))
            rows.append(row)
    if not rows:
        return not_run(experiment)
    columns = (*FIRST, estimate("factor", f"{_leaf(key)} {high} over {low}"))
    return Table("growth", "", "", columns, tuple(rows)).markdown()


def remedies(found: Results, experiment: str, key: str, remedy: str) -> str:
    """Returns with a remedy such as ``correction_cap=2`` minus those without it (Welch), with a column per value of `key`."""
    samples = _samples(found, experiment, key)
    rows: list[Cells] = []
    settings: set[str] = set()
    for (task, arm), without in samples.items():
        mended = samples.get((task, f"{arm} {remedy}"), {})
        if shared := without.keys() & mended.keys():
            row: Cells = {"task": task, "arm": arm, "n": min(at[setting].n for at in (without, mended) for setting in shared)}
            for setting in shared:
                row |= interval_cells(setting, welch(mended[setting], without[setting], found.settings.confidence)[0])
            rows.append(row)
            settings |= shared
    if not rows:
        return f"`rgpo-run -m experiment={experiment}` has not been run with and without {remedy}."
    columns = [estimate(setting, f"{_leaf(key)} {setting}", sign=True) for setting in sorted(settings, key=float)]
    blank = {key: value for setting in settings for key, value in interval_cells(setting, EMPTY).items()}
    return Table("remedies", "", "", (*FIRST, *columns), tuple({**blank, **row} for row in rows)).markdown()


def apart(found: Results, experiment: str, key: str, word_in: str) -> str:
    """Pairs of settings whose returns differ beyond noise, by intervals that hold for all pairs together (Welch, Bonferroni).

    word_in: part of the names of the arms whose settings are compared.
    """
    arms = {arm: at for arm, at in _samples(found, experiment, key).items() if word_in in arm[1]}
    pairs = [(arm, *pair) for arm, at in arms.items() for pair in combinations(sorted(at, key=float), 2)]
    if not pairs:
        return not_run(experiment)
    each = simultaneous(found.settings.confidence, len(pairs))
    rows: list[Cells] = []
    for (task, arm), low, high in pairs:
        at = arms[task, arm]
        difference, _ = welch(at[high], at[low], each)
        if difference.low > 0 or difference.high < 0:
            row: Cells = {"task": task, "arm": arm, "n": min(at[low].n, at[high].n), "low": low, "high": high}
            row |= interval_cells("difference", difference)
            rows.append(row)
    if not rows:
        return f"None of {len(pairs)} pairs differs beyond noise."
    columns = [word("low", _leaf(key)), word("high", f"and {_leaf(key)}"), estimate("difference", "difference", sign=True)]
    return f"{len(rows)} of {len(pairs)} pairs:\n\n{Table('apart', '', '', (*FIRST, *columns), tuple(rows)).markdown()}"


def _samples(
    found: Results, experiment: str, key: str, column: str = TRAIN, statistic: str = "final"
) -> Mapping[tuple[str, str], Mapping[str, Summary]]:
    """(task, arm) -> value of the setting -> a metric's statistic, the return of the last tenth unless another is named."""
    samples: dict[tuple[str, str], dict[str, Summary]] = {}
    for arm, setting, group in _cells(found, experiment, key):
        samples.setdefault((group.task, arm), {})[setting] = summarize(group.values(column, statistic))
    return samples


def _cells(found: Results, experiment: str, key: str) -> Iterator[tuple[str, str, Group]]:
    """Arm, value of the setting and runs; an arm is named by gate, penalty and what else is set for it and not for all runs."""
    shown = (f"{_leaf(key)}=", "gate=", "penalty=")
    for group in found.groups.get(experiment, []):
        setting = group.used[0].config.get(key)
        if isinstance(setting, int | float):
            others = [part for part in group.label.split()[1:] if not part.startswith(shown) and not part.endswith("=none")]
            yield " ".join([arm_of(group), *others]), f"{setting:g}", group


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]
