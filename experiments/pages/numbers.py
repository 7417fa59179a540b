"""The rendered texts in the pages; each is a function of the results and of the words after its name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from experiments.pages import arms, literature, one_update, sweeps
from experiments.pages.results import PER_TOKEN, Results, chosen, not_run
from rgpo.cli.config_dir import group_options
from rgpo.paths import conf_dir
from rgpo.report.claims.ledger import in_short
from rgpo.report.read.columns import LENGTH
from rgpo.report.read.groups import Group
from rgpo.report.read.repeated import read_repeated
from rgpo.report.stats.bootstrap import MIN_RUNS, Interval
from rgpo.report.tables import bench, summary
from rgpo.report.tables.advice import advice
from rgpo.report.tables.matched import matched_table
from rgpo.report.tables.table import Table, estimate, interval_cells, number, word

CONTROL = ("task", "label", "n", "return", "kl", "spikes")  # columns shown
LANGUAGE = ("label", "n", "proxy", "gold", "kl_ref", "length")


def results(found: Results, algo: str) -> str:
    """Tables of all experiments with the algorithm, compared with PPO, and its learning curves on control tasks."""
    parts = []
    for name, groups in found.of(algo).items():
        for language, make, shown in ((False, summary.returns, CONTROL), (True, summary.rewards, LANGUAGE)):
            members = [group for group in groups if group.language is language]
            if members:
                table = make(members, found.settings)
                parts += [_title(name, members), chosen(table, shown)]
    if not parts:
        return "There is no evidence in `results/` yet. A first impression, in a few minutes: see how to run it, above."
    if any(not group.language for groups in found.of(algo).values() for group in groups):
        parts.append(f"![Learning curves](../figures/results_{algo}.svg)")
    return "\n\n".join(part.strip() for part in [*parts, _brackets(found)])


def _title(name: str, groups: list[Group]) -> str:
    settings = sorted({summary.setting(group.runs[0]) for group in groups})
    repeat = f", `rgpo-run -m experiment={name}`" if name in group_options("experiment") else ""
    return f"**{name}** ({', '.join(settings)}{repeat}):"


def _brackets(found: Results) -> str:
    return (
        f"*Brackets: {100 * found.settings.confidence:g} % bootstrap over seeds, which covers too little for three to five; "
        "fewer than three seeds have none. Commits and versions are in each run's `provenance.json`.*"
    )


def curve(found: Results, algo: str) -> str:
    """The picture of an algorithm's gate and weight, or a sentence if it has none."""
    gate = gate_of(algo)
    if gate is None:
        return "This algorithm has no gate."
    return f"![g and w of gate={gate}](../figures/gate_{gate}.svg)\n\n*`gate={gate}`: g (left) and w = dg/dd (right).*"


def gate_of(algo: str) -> str | None:
    """The gate selected by conf/algo/<algo>.yaml, or None."""
    found = re.search(r"override /gate: (\w+)", (conf_dir() / "algo" / f"{algo}.yaml").read_text(encoding="utf-8"))
    return found[1] if found and found[1] != "null" else None


def verdict(found: Results) -> str:
    """Both answers of the report's first screen: whether the paper reproduces, and what to use instead."""
    words, counts = in_short([(claim.subject, claim.verdict) for claim in found.claims])
    advised = advice(list(found.groups.items()), found.settings, read_repeated(found.folder)[0])
    lines = [f"**Does it reproduce?** {words}. {counts}"]
    lines += [f"**What should I use instead?** {' '.join(advised.headlines)}"] if advised else []
    return "\n\n".join(lines)


def verdicts(found: Results) -> str:
    """A row per claim in the paper."""
    rows = [f"| {claim.id} | {claim.subject} | {claim.claim} | {claim.verdict} |" for claim in found.claims]
    return "\n".join(["| id | about | claim | verdict |", "| :-- | :-- | :-- | :-- |", *rows])


def equal_kl(found: Results, experiment: str, baseline: str = "ppo", algo: str = "") -> str:
    """Rewards of an experiment's arms, or of one algorithm's, compared with a baseline at the largest KL that both reach."""
    table = matched_table(found.groups.get(experiment, []), replace(found.settings, baseline=baseline))
    if table is None:
        return not_run(experiment)
    last = {(row["measure"], row["label"]): row for row in table.rows if algo in ("", row["algo"])}
    return chosen(replace(table, rows=tuple(last.values())), ("measure", "label", "n", "kl", "percent"))


def lengths(found: Results, experiment: str) -> str:
    """Smallest and largest means of completions' lengths and of the KL per token, for arms whose label ends with a setting."""
    samples: dict[str, list[list[float]]] = {}
    for group in found.groups.get(experiment, []):
        means = [float(group.values(*name).mean()) for name in ((LENGTH, "final"), PER_TOKEN)]
        samples.setdefault(group.label.rpartition(" ")[0], []).append(means)
    if not samples:
        return not_run(experiment)
    rows: list[dict[str, str | float]] = []
    for label, values in samples.items():
        length, kl = zip(*values, strict=True)
        spans = {"length": f"{min(length):.1f} to {max(length):.1f}", "kl": f"{min(kl):.2g} to {max(kl):.2g}"}
        rows.append({"label": label, "settings": len(values), **spans})
    columns = (
        word("label", "algorithm"),
        number("settings", "settings"),
        word("length", "tokens per completion"),
        word("kl", "KL to the reference per token, nats"),
    )
    return Table("lengths", "", "", columns, tuple(rows)).markdown()


def return_at_equal_kl(found: Results, experiment: str, baseline: str) -> str:
    """Returns of arms with several settings compared with a baseline arm (``ppo+gate=identity``) at each common level of KL."""
    settings = replace(found.settings, baseline=baseline.replace("+", " "))
    table = matched_table(found.groups.get(experiment, []), settings)
    if table is None:
        return not_run(experiment)
    return chosen(table, ("task", "label", "n", "kl", "difference", "percent"))


def single_updates(found: Results) -> str:
    """Gains of single updates at equal KL, with the differences from PPO's clip."""
    changes = one_update.changes(found.single_updates, found.settings.confidence)
    if not changes:
        return "`python -m experiments.one_update` has not been run."
    rows: list[dict[str, str | float]] = []
    for one in changes:
        row: dict[str, str | float] = {"task": one.task, "label": one.arm, "kl": one.kl, "n": one.num_states}
        row |= interval_cells("gain", one.gain) | interval_cells("difference", one.difference)
        rows.append(row)
    columns = (
        word("task", "task"),
        word("label", "arm"),
        number("kl", "KL, nats", 2),
        number("n", "states"),
        estimate("gain", "gain in return"),
        estimate("difference", f"minus that of {one_update.BASELINE}", sign=True),
    )
    table = Table("single_updates", "", "", columns, tuple(rows))
    return f"{table.markdown()}\n\n![Gain over KL](figures/one_update.svg)"


def updates_by_kl(found: Results) -> str:
    """Mean gain of single updates, over all arms, by range of KL, with a column per task and intervals over states."""
    measured = one_update.read(found.folder / "one_update")
    if not len(measured):
        return "`python -m experiments.one_update` has not been run."
    states = measured.groupby("task").state.nunique()
    rows: list[dict[str, str | float]] = []
    for (low, high), by_task in one_update.by_range(measured, found.settings.confidence).items():
        row: dict[str, str | float] = {
            "range": f"{low:g} to {high:g}" if math.isfinite(high) else f"above {low:g}",
            "n": MIN_RUNS,
        }
        for task in states.index:
            row |= interval_cells(task, by_task.get(task, Interval(math.nan, math.nan, math.nan)))
        rows.append(row)
    columns = [word("range", "KL, nats"), *(estimate(task, f"{task} ({states[task]} states)") for task in states.index)]
    return Table("updates_by_kl", "", "", tuple(columns), tuple(rows)).markdown()


def speed(found: Results, kind: str) -> str:
    """A row per case in results/bench: our speed per CPU-second, the fastest other implementation, and their ratio."""
    unit = kind.replace("-", " ")
    columns = (
        word("case", "case"),
        number("ours", f"rgpo, {unit} per CPU-second", 3),
        word("best", "fastest other"),
        number("theirs", "its own", 3),
        estimate("ratio", "ratio"),
        number("n", "rounds"),
    )
    rows = _beside_the_fastest(found, unit)
    return Table("speed", "", "", columns, rows).markdown() if rows else "Nothing has been measured."


def speed_in_short(found: Results) -> str:
    """The ratios in ``speed`` for PPO as one sentence."""
    cases = [row for row in _beside_the_fastest(found, "environment steps") if str(row["case"]).startswith("PPO, ")]
    parts = [f"{str(row['case']).removeprefix('PPO, ')}: {row['ratio']:.2g} ({row['best']})" for row in cases]
    about = "Environment steps of PPO per CPU-second on one thread, over those of the fastest other implementation"
    return f"**Is it fast?** {about}. {'; '.join(parts)}. [More](docs/scaling.md#speed)."


def _beside_the_fastest(found: Results, unit: str) -> tuple[dict[str, str | float], ...]:
    rows: list[dict[str, str | float]] = []
    for case in bench.read(found.folder)[0]:
        medians = {name: bench.median_and_range(list(one.speed.values())).value for name, one in case.contestants.items()}
        others = {name: x for name, x in medians.items() if not name.startswith(bench.OURS)}
        for ours, suffix in ((bench.OURS, ""), (f"{bench.OURS}, cold", ", no code cached")):
            if others and case.unit == unit and ours in medians:
                best = max(others, key=others.__getitem__)
                row: dict[str, str | float] = {"case": f"{case.name}{suffix}", "best": best}
                row |= {"ours": medians[ours], "theirs": others[best], "n": len(case.contestants[best].speed)}
                row |= interval_cells("ratio", bench.ratio(case, best, ours))
                rows.append(row)
    return tuple(rows)


def campaign(found: Results, name: str) -> str:
    """The table of a fault campaign, as written by the campaign."""
    return (found.folder / "campaign" / f"{name}.md").read_text(encoding="utf-8").partition("\n\n")[2]


RENDERERS: Mapping[str, Callable[..., str]] = {
    "results": results,
    "curve": curve,
    "verdict": verdict,
    "verdicts": verdicts,
    "arms": arms.arms,
    "across": arms.across,
    "contrasts": arms.contrasts,
    "differences": arms.differences,
    "grid": sweeps.grid,
    "losses": sweeps.losses,
    "growth": sweeps.growth,
    "apart": sweeps.apart,
    "remedies": sweeps.remedies,
    "others": arms.others,
    "lengths": lengths,
    "published": literature.published,
    "evaluated": literature.evaluated,
    "equal_kl": equal_kl,
    "return_at_equal_kl": return_at_equal_kl,
    "single_updates": single_updates,
    "updates_by_kl": updates_by_kl,
    "speed": speed,
    "speed_in_short": speed_in_short,
    "campaign": campaign,
}
