"""A claim, the runs that it names, and its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import report_fixtures as fixtures
import yaml

from rgpo.report.claims.claim import read_claim
from rgpo.report.claims.external import read_external
from rgpo.report.claims.theory import read_theory
from rgpo.report.claims.verdict import Verdict, judge
from rgpo.report.read.load import experiments, read_runs
from rgpo.report.read.repeated import read_repeated

RETURN = {"metric": "return/train_mean", "statistic": "final"}
CLAIM: dict[str, Any] = {
    "id": "T1",
    "claim": "return on par",
    "quote": "on par",
    "source": "a test",
    "stated_by": "paper",
    "paper": "on par",
    "evidence": {"experiment": "first_evidence", "tasks": ["hopper"], "steps": 20 * fixtures.STEPS, "seeds": 3},
    "arms": {"treatment": {"algo": "rgpo"}, "baseline": {"algo": "ppo"}},
    "null_arm": {"algo": "trpo"},
    "rule": {"kind": "parity", **RETURN, "margin": 20},
    "changes_our_mind": "more seeds",
}
GAIN = {"kind": "gain", **RETURN, "paper": {"hopper": 50.0}}
FLAT = {"rgpo": 1000.0, "ppo": 1010.0, "trpo": 300.0}


def claim(here: Path, **change: Any) -> Path:
    """A claim file with some entries replaced; mappings are merged, except rules and arms."""
    node = dict(CLAIM)
    for key, value in change.items():
        merged = isinstance(value, dict) and key == "evidence"
        node[key] = {**node[key], **value} if merged else value
    path = here / "mine" / "T1.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in node.items() if value is not None}))
    return path


def write(here: Path, algo: str, seed: int, *, final: float | None = None, task: str = "hopper", **change: Any) -> Path:
    """A run with a constant return, which differs a little from seed to seed."""
    metrics = fixtures.metrics_of(task, "rgpo", seed, 20)
    level = FLAT[algo] if final is None else final
    metrics["return/train_mean"] = np.full(20, level * (1 + 0.004 * (seed % 3)))
    metrics |= change.pop("metrics", {})
    return fixtures.write_run(here / "results", task, algo, seed, 20, metrics=metrics, **change)


def registered(here: Path, task: str = "hopper") -> None:
    """The runs that CLAIM names."""
    for algo in FLAT:
        for seed in (1, 2, 3):
            write(here, algo, seed, task=task)


def verdict(here: Path, path: Path | None = None, results: Path | None = None) -> Verdict:
    results = results or here / "results"
    anchors, _ = read_external(results)
    loaded = read_claim(path or claim(here), [], anchors)
    runs = []
    for name in experiments(results, None):
        runs += read_runs(results / name, loaded.columns, 0.1, (0.04,), lambda f, items, _: map(f, items), loaded.numbers)[0]
    return judge(loaded, runs, read_theory(results)[0], anchors, read_repeated(results)[0])
