"""Results of rliable for fixed scores, for tests/test_report_stats.py.

    pip install rliable==1.2.0 "pandas<3"
    python benchmarks/rliable_fixtures.py tests/fixtures/rliable.json

Scores have shape (runs, tasks). Intervals use 20,000 resamples, so that their own noise is about 1 % of their width.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rliable import library, metrics

RESAMPLES = 20_000
NAMES = ("mean", "IQM", "median", "optimality gap")
THRESHOLDS = np.linspace(0, 2, 9)


def aggregates(scores: np.ndarray) -> np.ndarray:
    """The four aggregates, in the order of NAMES."""
    functions = (metrics.aggregate_mean, metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_optimality_gap)
    return np.array([function(scores) for function in functions])


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    np.random.seed(0)  # noqa: NPY002  rliable draws from the global generator
    level = rng.gamma(4.0, 0.25, size=4)
    scores = {
        "x": (level * rng.lognormal(0.15, 0.4, size=(10, 4))).round(4),
        "y": (level * rng.lognormal(0.0, 0.3, size=(8, 4))).round(4),
    }
    points, intervals = library.get_interval_estimates(scores, aggregates, reps=RESAMPLES)
    profiles, bands = library.create_performance_profile(scores, THRESHOLDS, reps=RESAMPLES)
    pair = {"x,y": (scores["x"], scores["y"])}
    chance, chance_interval = library.get_interval_estimates(pair, metrics.probability_of_improvement, reps=RESAMPLES)
    found = {
        "versions": {name: version(name) for name in ("rliable", "numpy", "arch")},
        "resamples": RESAMPLES,
        "scores": {name: values.tolist() for name, values in scores.items()},
        "aggregates": {name: {key: [points[name][i], *intervals[name][:, i]] for i, key in enumerate(NAMES)} for name in scores},
        "thresholds": THRESHOLDS.tolist(),
        "profiles": {name: [profiles[name].tolist(), *bands[name].tolist()] for name in scores},
        "improvement": [float(chance["x,y"]), *np.ravel(chance_interval["x,y"]).tolist()],
    }
    Path(path).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
