"""Time and peak memory of rgpo-report for many long runs: 10 tasks x 10 algorithms x seeds, all columns in the glossary.

    python benchmarks/report_scale.py make FOLDER --runs 1000 --rows 10000
    python benchmarks/report_scale.py measure FOLDER

Memory is the total proportional set size (PSS) of rgpo-report's processes, sampled every 0.1 s.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import report_fixtures as fixtures

from rgpo.runtime.metrics import arrow_schema, write_atomically
from rgpo.runtime.schema import GLOSSARY, is_list

TASKS, ALGOS = 10, 10


def make(folder: Path, num_runs: int, num_rows: int) -> None:
    """Write runs whose metrics are random walks, using shifted copies of the same arrays to save time."""
    rng = np.random.default_rng(0)
    algos = [*fixtures.ALGOS, "awr", "p3o", "sapo", "spo"]
    fixtures.ALGOS.update({algo: fixtures.ALGOS["ppo"] for algo in algos if algo not in fixtures.ALGOS})
    every = {name: np.exp(rng.normal(size=num_rows) * 0.3 - 3).astype(np.float32) for name in GLOSSARY if not is_list(name)}
    for sparse, gap in (("return/eval_mean", 20), ("return/eval_std", 20), ("gradvar/before", 10), ("gradvar/after", 10)):
        every[sparse] = np.where(np.arange(num_rows) % gap == 0, every[sparse], np.nan).astype(np.float32)
    epochs = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(num_rows * 10, np.float32)), 10).cast(pa.list_(pa.float32()))
    for i in range(num_runs):
        task, algo, seed = f"task{i % TASKS}", algos[i // TASKS % ALGOS], i // (TASKS * ALGOS) + 1
        run = fixtures.write_run(folder, task, algo, seed, num_rows, metrics={"return/train_mean": every["loss/policy"]})
        shift = float(np.exp(0.3 * rng.normal()))
        count = np.arange(1, num_rows + 1)
        columns = {"run_id": run.name, "task": task, "algo": algo, "gate": "clip", "config_hash": "0", "git_sha": "0"}
        columns = {name: pa.array([text] * num_rows, pa.string()).dictionary_encode() for name, text in columns.items()}
        columns |= {"seed": pa.array(np.full(num_rows, seed)), "attempt": pa.array(np.ones(num_rows, int))}
        columns |= {"iteration": pa.array(count), "env_steps": pa.array(count * 2048)}
        columns |= {name: pa.array(values * np.float32(shift)) for name, values in every.items()}
        columns |= {name: epochs for name in GLOSSARY if is_list(name)}
        names = [name for name in arrow_schema({}).names if name in columns]
        write_atomically(pa.table({name: columns[name] for name in names}), run / "metrics.parquet")


def measure(folder: Path, cores: int, words: list[str]) -> None:
    """Run rgpo-report on `cores` cores."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "rgpo.report.cli", f"results_dir={folder}", f"out={out}", *words]
        start, peak = time.monotonic(), 0
        available = sorted(os.sched_getaffinity(0))[:cores]
        process = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, available))
        while process.poll() is None:
            peak = max(peak, sum(_memory(pid) for pid in _family(process.pid)))
            time.sleep(0.1)
        seconds = time.monotonic() - start
        size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file())
        page = Path(out, "index.html")
        written = f"{size / 1e6:.1f} MB written, page {page.stat().st_size / 1e6:.1f} MB" if page.exists() else "no page"
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = f"{seconds:.1f} s wall, {used.ru_utime + used.ru_stime:.1f} s CPU, load {os.getloadavg()[0]:.1f}"
    print(f"exit {process.returncode}, {busy}, peak {peak / 1e6:.0f} MB, {cores} cores, {written}")


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += _family(int(child))
    except OSError:
        pass
    return found


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("make", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    arguments, words = parser.parse_known_args()
    if arguments.what == "make":
        make(arguments.folder, arguments.runs, arguments.rows)
    else:
        measure(arguments.folder, arguments.cores, words)


if __name__ == "__main__":
    main()
