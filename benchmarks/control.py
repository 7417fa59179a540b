"""PPO and TRPO on the same work: ours compared with the strongest other implementations.

    pip install -e ".[bench]"
    python benchmarks/control.py [rounds] [out.parquet]
    python benchmarks/control.py learning [seeds] [out.parquet]

Rivals: Stable-Baselines3 and sb3-contrib; SBX, SB3's PPO in JAX; a plain loop as in CleanRL, and the same loop compiled as in
LeanRL; and PPO with CartPole jitted as a single JAX function. All use the same samples, epochs, minibatches of 64, networks
(two, 64 x 64, tanh) and one thread. Contestants are interleaved, each in a fresh process; ours is compiled, with cached code.
Wall and CPU seconds are counted from the second rollout on, over whole iterations of collecting and learning (ours includes
diagnostics, and the gradient's variance every tenth iteration); evaluation, checkpoints and files are excluded. The comparison is
in CPU seconds. The case "whole process" includes everything that a user waits for: 100,000 steps of CartPole with imports and
compilation, ours as rgpo-run with evaluation and files, with and without ("cold") cached code. A rival whose package is missing
is skipped with a message. `learning` instead trains for 100,000 steps and compares the returns of the last 10 episodes (for ours,
each episode counts with the mean return of its rollout).
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from contestants import CONTESTANTS, EPOCHS, MINIBATCH, PACKAGES, SAMPLES

GATES = ("sigmoid", "sigmoid_log", "sign_aware_sigmoid", "gaussian_log", "power", "rational", "sapo", "spo", "cispo", "budget")
ITERATIONS = 11  # the first one is not counted
LEARNING_ITERATIONS = 49
LEARNERS = ("ours", "ours-uncompiled", "sb3", "plain")
RIVALS = ("sb3", "sbx", "plain", "compiled")
WHOLE, WHOLE_ITERATIONS = "CartPole-v1, whole process of 100,000 steps", 98
CASES = [
    *((env, n, name) for env in ("HalfCheetah-v4", "Hopper-v4") for n in (1, 8) for name in ("ours", *RIVALS)),
    *(("CartPole-v1", 8, name) for name in ("ours", *RIVALS, "jax")),
    *((WHOLE, 8, name) for name in ("ours", "ours-cold", *RIVALS, "jax")),
    *(("HalfCheetah-v4", 1, name) for name in ("ours-trpo", "sb3-trpo")),
    *(("HalfCheetah-v4", 1, f"ours-{gate}") for gate in GATES),
]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}


def measure(env_id: str, num_envs: int, name: str, seed: int = 0, iterations: int = ITERATIONS) -> dict[str, Any]:
    """Measure one contestant in a fresh process."""
    if env_id == WHOLE:
        return whole(num_envs, name)
    found = result(start([sys.executable, __file__, "--one", env_id, str(num_envs), name, str(seed), str(iterations)]), name)
    steps = SAMPLES[env_id] * (iterations - 1)
    return {"steps_per_cpu_s": steps / found["cpu_s"], "steps_per_s": steps / found["wall_s"], **found}


def whole(num_envs: int, name: str) -> dict[str, Any]:
    """Measure a process from start to end: rgpo-run, or a rival."""
    with tempfile.TemporaryDirectory() as folder:
        size = [f"task.num_envs={num_envs}", f"task.num_steps={1024 // num_envs}", f"num_iterations={WHOLE_ITERATIONS}"]
        words = [*size, f"update.num_epochs={EPOCHS}", f"update.num_minibatches={1024 // MINIBATCH}", f"results_dir={folder}"]
        command = [sys.executable, "-m", "rgpo.cli.run", "algo=ppo", "task=cartpole", *words]
        if not name.startswith("ours"):
            command = [sys.executable, __file__, "--one", "CartPole-v1", str(num_envs), name, "0", str(WHOLE_ITERATIONS)]
        cache = {"RGPO_CACHE": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"} if name == "ours-cold" else {}
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = start(command, cache)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    steps = WHOLE_ITERATIONS * 1024
    found = {"cpu_s": cpu, "wall_s": wall, "peak_rss_mib": float("nan")}
    return {"steps_per_cpu_s": steps / cpu, "steps_per_s": steps / wall, **found}


def start(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to completion on one thread."""
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_THREAD | (environment or {}))


def result(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    """The result printed by a contestant's process."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return found


def one(env_id: str, num_envs: str, name: str, seed: str = "0", iterations: str = str(ITERATIONS)) -> None:
    """Run one contestant in this process and print its result."""
    found = CONTESTANTS[name.partition("-")[0]](env_id, int(num_envs), name, int(seed), int(iterations))
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps(found))


def learning(seeds: int, out: str | None) -> None:
    """Train every learner on HalfCheetah-v4 with each seed and print the returns."""
    rows: list[dict[str, Any]] = []
    learners = installed(LEARNERS)
    for seed in range(seeds):
        for name in learners:
            row = {"seed": seed, "env_id": "HalfCheetah-v4", "num_envs": 1, "contestant": name}
            rows.append(row | measure("HalfCheetah-v4", 1, name, seed, LEARNING_ITERATIONS))
            print(f"seed {seed} {name:20} return {rows[-1]['return']:8.1f}", flush=True)
        keep(rows, out)
    for name in learners:
        returns = [row["return"] for row in rows if row["contestant"] == name]
        spread = statistics.stdev(returns) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
        print(f"{name:20} {statistics.fmean(returns):8.1f} +- {spread:.1f} over {len(returns)} seeds")


def speed(rounds: int, out: str | None) -> None:
    """Run the contestants interleaved, print medians and ratios, and keep every row."""
    names = installed([name for _, _, name in CASES])
    cases = [case for case in CASES if case[2] in names]
    for case in cases:
        if case[2].startswith("ours"):
            measure(*case)  # warms up the cache of compiled code
    rows: list[dict[str, Any]] = []
    for i in range(rounds):
        for env_id, num_envs, name in cases if i % 2 == 0 else cases[::-1]:
            row = {"round": i, "env_id": env_id, "num_envs": num_envs, "contestant": name} | measure(env_id, num_envs, name)
            rows.append(row)
            print(f"round {i} {env_id:15} x{num_envs} {name:20} {row['steps_per_cpu_s']:8,.0f} steps per CPU-s", flush=True)
        keep(rows, out)
    print()
    for env_id, num_envs, name in cases:
        mine = speeds(rows, env_id, num_envs, name)
        line = f"{env_id:15} x{num_envs} {name:20} {statistics.median(mine):8,.0f} steps per CPU-s"
        for rival in filter(None, [best_rival(rows, env_id, num_envs, name)]):
            ratios = [a / b for a, b in zip(mine, speeds(rows, env_id, num_envs, rival), strict=True)]
            line += f"   {statistics.median(ratios):5.2f} x {rival} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line)


def present(name: str) -> bool:
    """True if a contestant's package is installed."""
    package = PACKAGES.get(name.partition("-")[0])
    return package is None or importlib.util.find_spec(package) is not None


def installed(names: Sequence[str]) -> list[str]:
    """The contestants whose packages are installed; prints a line for each of the others."""
    for name in dict.fromkeys(name for name in names if not present(name)):
        print(f'{name}: skipped, its package is missing; pip install -e ".[bench]"', flush=True)
    return [name for name in names if present(name)]


def best_rival(rows: list[dict[str, Any]], env_id: str, num_envs: int, name: str) -> str | None:
    """The contestant with which ours is compared: the fastest other one on the same work or, for other gates, ours with PPO's."""
    gate = name.partition("-")[2] in GATES
    if not name.startswith("ours") or gate:
        return "ours" if gate else None
    trpo = name.endswith("trpo")
    others = {row["contestant"] for row in rows if (row["env_id"], row["num_envs"]) == (env_id, num_envs)}
    others = {other for other in others if not other.startswith("ours") and other.endswith("trpo") == trpo}
    return max(others, key=lambda other: statistics.median(speeds(rows, env_id, num_envs, other)), default=None)


def speeds(rows: list[dict[str, Any]], env_id: str, num_envs: int, name: str) -> list[float]:
    """A contestant's speeds in order of rounds."""
    key = (env_id, num_envs, name)
    return [row["steps_per_cpu_s"] for row in rows if (row["env_id"], row["num_envs"], row["contestant"]) == key]


def keep(rows: list[dict[str, Any]], out: str | None) -> None:
    """Write the rows so far."""
    if out is not None:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(out)


def main() -> None:
    """Parse the command line and run the benchmark."""
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        return one(*words[1:])
    run, words = (learning, words[1:]) if words[:1] == ["learning"] else (speed, words)
    run(int(words[0]) if words else 5, words[1] if len(words) > 1 else None)


if __name__ == "__main__":
    main()
