"""The overhead of a sweep compared with training, and the benefit of a second core, for `rgpo-run -m` as typed by a user.

    pip install -e .
    python benchmarks/sweep.py [rounds] [out.parquet]

First, 20 runs of CartPole (2 algorithms x 10 seeds) at the default length, in sequence, with and without compilation: the share
of the command's wall time that was not training. Training time is the sum of the iterations' seconds in metrics.parquet, where
each run's first iteration is replaced by the median, so that tracing and compiling count as overhead. Then, two seeds of
HalfCheetah in parallel with one thread each, against the same two in sequence with two threads.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

SHORT = ["task=cartpole", "algo=ppo,rgpo", "seed=1,2,3,4,5,6,7,8,9,10"]  # 200,000 steps each
PAIR = ["task=halfcheetah", "algo=ppo", "seed=1,2", "total_env_steps=102400", "update.compile=true"]
CASES = {
    "20 runs, not compiled": SHORT,  # update.compile=auto: too short to be worth it
    "20 runs, compiled": [*SHORT, "update.compile=true"],
    "2 runs side by side, 1 thread each": [*PAIR, "num_threads=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "2 runs in turn, 2 threads": [*PAIR, "num_threads=2"],
}


def measure(words: list[str]) -> dict[str, float]:
    """Wall seconds of a command, and the part that was training."""
    with tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        command = ["rgpo-run", "-m", *words, f"results_dir={folder}", "eval_every=0"]
        subprocess.run(command, check=True, capture_output=True)
        wall = time.perf_counter() - before
        training = 0.0
        for file in Path(folder).rglob("metrics.parquet"):
            seconds = pd.read_parquet(file)["time/iteration_s"]
            training += seconds.iloc[1:].sum() + seconds.median()
    return {"wall_s": wall, "training_s": training, "outside": 1 - training / wall}


def main() -> None:
    """Run the cases interleaved, print medians, and keep every row."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for words in CASES.values():
        if "update.compile=true" in words:
            measure(words)  # warms up the cache of compiled code
    rows: list[dict[str, Any]] = []
    for i in range(rounds):
        for case, words in list(CASES.items())[:: 1 if i % 2 == 0 else -1]:
            rows.append({"round": i, "case": case} | measure(words))
            print(f"round {i} {case:36} {rows[-1]['wall_s']:7.1f} s", flush=True)
    if len(sys.argv) > 2:
        pd.DataFrame(rows).to_parquet(sys.argv[2])
    print()
    for case in CASES:
        mine = [row for row in rows if row["case"] == case]
        line = f"{case:36} {statistics.median(row['wall_s'] for row in mine):7.1f} s"
        if case.startswith("20"):
            line += f", {100 * statistics.median(row['outside'] for row in mine):.1f} % outside training"
        print(line)
    pairs = [[row["wall_s"] for row in rows if row["case"] == case] for case in list(CASES)[2:]]
    ratios = [turn / beside for beside, turn in zip(*pairs, strict=True)]
    print(f"side by side is {statistics.median(ratios):.2f} times as fast [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
