"""An experiment's data as one embedded JSON value, from which the page's script draws and filters."""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rgpo.report.claims.external import Anchors
from rgpo.report.figures.looks import Line
from rgpo.report.page.columns import curves, shown_metrics
from rgpo.report.page.completions import Pair, Sample
from rgpo.report.read.columns import FINAL, KL, PROXY, TRAIN
from rgpo.report.read.groups import Group, distinguishing_keys
from rgpo.report.read.run import Run
from rgpo.report.settings import Settings
from rgpo.report.tables.advice import Advice
from rgpo.report.tables.baseline import baseline_of
from rgpo.runtime.former import canonical_name
from rgpo.runtime.reader import printable

MAX_KEYS = 24  # most varying config keys shown
MAX_SHOWN = 60  # most characters of a config value


def experiment_data(
    name: str,
    groups: Sequence[Group],
    lines: Mapping[str, Line],
    pairs: Sequence[Pair],
    anchors: Anchors,
    advice: Advice | None,
    settings: Settings,
    num_values: int,
) -> dict[str, object]:
    """Runs, their varying settings, metrics, lines, completions and published numbers.

    num_values: the largest total number of points in all curves.
    """
    members = [(group, run) for group in groups for run in group.runs]
    runs = [run for _, run in members]
    keys = varying_keys(runs)
    bases = {
        task: base.label
        for task in dict.fromkeys(run.task for run in runs)
        if (base := baseline_of(task, groups, settings.baseline))
    }
    best = {contest.arms[0].label for contest in advice.contests if contest.experiment == name} if advice else set()
    front = {*bases.values()} | ({group.label for group in groups if group.algo == "rgpo"} or best)
    return {
        "name": name,
        "lines": {label: look(line) for label, line in lines.items()},
        "front": sorted(front),
        "baselines": bases,
        "keys": keys,
        "runs": [_run(run, group, keys, settings) for group, run in members],
        "score": PROXY if any(group.language for group in groups) else TRAIN,
        "finals": {
            column: [number(run.number(column, statistic)) for run in runs]
            for column, statistic in [*((column, "final") for column in FINAL), (KL, "mean")]
            if any(math.isfinite(run.number(column, statistic)) for run in runs)
        },
        "published": _published(groups, anchors),
        "pairs": [_pair(pair) for pair in pairs],
        **curves(runs, shown_metrics(runs, num_values)),
    }


def varying_keys(runs: Sequence[Run]) -> list[str]:
    """Config keys whose values differ between runs, including the algorithm; those that distinguish arms come first."""
    first = distinguishing_keys(runs) if runs else []
    return [*(["choices.algo"] if len({run.algo for run in runs}) > 1 else []), *first][:MAX_KEYS]


def packed(value: object) -> str:
    """JSON as gzip in base64, which takes a third of the size and contains no markup characters."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def look(line: Line) -> list[object]:
    """Colors on light and dark background, and the dash pattern."""
    return [line.color, line.dark, [] if isinstance(line.dashes, str) else [2 * length for length in line.dashes[1]]]


def number(value: float) -> float | None:
    """Round to six digits; None if the value is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _run(run: Run, group: Group, keys: Sequence[str], settings: Settings) -> dict[str, object]:
    return {
        "id": run.run_id,
        "href": link(run.folder, settings.out),
        "task": run.task,
        "algo": run.algo,
        "label": group.label,
        "seed": run.seed,
        "status": run.status,
        "used": run in group.used,
        "config": [printable(str(run.config.get(key, "none")), MAX_SHOWN) for key in keys],
    }


def link(path: Path, out: str) -> str:
    """A relative link from the page to a file."""
    return quote(os.fsencode(os.path.relpath(path, out)))


def _published(groups: Sequence[Group], anchors: Anchors) -> list[dict[str, object]]:
    """Published returns for the groups' tasks, algorithms and lengths."""
    found = {}
    for group in groups:
        steps = group.runs[0].planned_steps
        for by_arm in anchors.values():
            for arm, by_task in by_arm.items():
                anchor = by_task.get(group.task)
                if anchor is not None and anchor.steps == steps and canonical_name("algo", arm) == group.algo:
                    text = f"{anchor.source}, {arm}" + (f" (its protocol differs: {anchor.differs})" if anchor.differs else "")
                    found[group.task, text] = {
                        "task": group.task, "metric": anchor.metric, "text": text, "value": anchor.value, "sd": number(anchor.sd),
                        "n": anchor.n,
                    }  # fmt: skip
    return list(found.values())


def _pair(pair: Pair) -> dict[str, object]:
    return {
        "label": pair.label,
        "task": pair.task,
        "seed": pair.seed,
        "prompt": pair.before.prompt,
        "id": pair.before.prompt_id,
        "sides": [_sample("before (the reference)", pair.before), _sample(f"after iteration {pair.after.iteration}", pair.after)],
    }


def _sample(title: str, sample: Sample) -> dict[str, object]:
    parts = {"proxy": sample.proxy, **sample.terms, "gold": sample.gold, "KL": sample.kl_ref}
    scores = {name: number(value) for name, value in parts.items() if math.isfinite(value)}
    return {"title": title, "text": sample.completion, "scores": scores, "tokens": sample.length}
