"""A synthetic results folder: six algorithms with plausible random curves, in the runner's file layout."""

from __future__ import annotations

import base64
import csv
import gzip
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rgpo.runtime.schema import is_list

Metrics = dict[str, Any]
# gate, final return of (hopper, halfcheetah), KL, drift exponent, ESS, relative weight
ALGOS: dict[str, tuple[str, tuple[float, float], float, float, float, float]] = {
    "ppo": ("clip", (2200, 1450), 0.010, 0.8, 0.96, 0.90),
    "ppo_kl": ("clip", (2100, 1400), 0.007, 0.7, 0.97, 0.93),
    "trpo": ("identity", (2600, 1200), 0.0095, 1.0, 0.98, 1.0),
    "rgpo_literal": ("sigmoid", (700, 300), 1.4, 1.6, 0.35, 0.45),
    "rgpo": ("sigmoid", (2000, 1650), 0.021, 1.0, 0.93, 0.82),
    "rgpo_sign_aware": ("sign_aware_sigmoid", (2500, 1900), 0.0079, 0.6, 0.965, 0.88),
}
LANGUAGE_ALGOS = {"ppo": (0.8, 0.25), "grpo": (1.0, 0.6), "rgpo": (0.7, 0.1)}  # pace, how far gold falls behind
TASKS = ("hopper", "halfcheetah")
ENV_IDS = {"hopper": "Hopper", "halfcheetah": "HalfCheetah", "walker2d": "Walker2d", "ant": "Ant"}
ENVIRONMENTS = {task: {"env_id": env_id, "version": "v4"} for task, env_id in ENV_IDS.items()}
STEPS = 2048


def config_of(task: str, algo: str, seed: int, iterations: int, **changes: Any) -> dict[str, Any]:
    """A resolved config; changes are top-level keys or whole groups."""
    gate = ALGOS.get(algo, ALGOS["ppo"])[0]
    choices = {"task": task, "algo": algo, "gate": gate, "ref_gate": "open", "gate_combination": "detached"}
    choices |= {"advantage": "gae", "penalty": "none", "update": "natural_gradient" if algo == "trpo" else "sgd"}
    config: dict[str, Any] = {
        "name": "first_evidence",
        "seed": seed,
        "num_iterations": iterations,
        "total_env_steps": iterations * STEPS,
        "choices": choices,
        "task": {**ENVIRONMENTS.get(task, {}), "num_steps": STEPS, "env_kwargs": {}},
        "gate": {"_target_": f"rgpo.gates.{gate}", "sharpness": 10.0},
        "update": {"lr": 3e-4, "num_epochs": 10},
    }
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(config.get(key), dict) else value
    return config


def metrics_of(task: str, algo: str, seed: int, iterations: int) -> Metrics:
    """Columns of a run, each (iterations,) or a list of lists."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{task}/{algo}".encode())])
    _, finals, kl, exponent, ess, weight = ALGOS[algo]
    x = np.linspace(0, 1, iterations)
    ripple = np.convolve(rng.normal(size=iterations + 8), np.ones(9) / 9, mode="valid")
    level = finals[TASKS.index(task) if task in TASKS else 0] * np.exp(0.12 * rng.normal())
    train = level * (1 - np.exp(-4 * x)) * (1 + 0.16 * ripple) + 20 + 30 * rng.normal(size=iterations)
    evaluated = np.full(iterations, np.nan)
    evaluated[19::20] = 1.08 * train[19::20]
    evaluated[-1] = 1.08 * train[-1]
    kl_old = kl * (1 - 0.85 * x) * np.exp(0.3 * rng.normal(size=iterations))
    variance = 40 * (1 + x) * np.exp(0.25 * rng.normal(size=iterations)) * (3 if algo == "rgpo_literal" else 1)
    every_tenth = np.arange(iterations) % 10 == 0
    num_epochs = 1 if algo == "trpo" else 10
    drift = (np.arange(1, num_epochs + 1) / num_epochs) ** exponent
    fade = 1 - 0.85 * x
    return {
        "return/train_mean": train,
        "return/eval_mean": evaluated,
        "kl/old_exact": kl_old,
        "weight/relative_mean": np.clip(1 - (1 - weight) * fade + 0.008 * rng.normal(size=iterations), 0, None),
        "ess/ratio": np.clip(1 - (1 - ess) * fade + 0.006 * rng.normal(size=iterations), 0, 1),
        "gradvar/before": np.where(every_tenth, variance, np.nan),
        "gradvar/before_noise_share": np.where(every_tenth, variance / 500 * (1 + 3 * x), np.nan),
        "epoch/kl_old_exact": [list(k * drift) for k in kl_old],
        "speed/env_steps_per_s": 3500 + 100 * rng.normal(size=iterations),
        "ess/weight": np.clip(1 - (1 - ess) * fade + 0.006 * rng.normal(size=iterations), 0, 1),
        "ratio/max": 1 + kl * 40 * rng.pareto(3.0, size=iterations),
        "ratio/tail_index": 3 + rng.normal(size=iterations) ** 2,
        "time/collect_s": 0.3 + 0.01 * rng.random(iterations),
        "time/update_s": 0.2 + 0.01 * rng.random(iterations),
        "time/iteration_s": 0.5 + 0.02 * rng.random(iterations),
        "grad/norm_mean": np.ones(iterations),
    }


def language_metrics_of(algo: str, seed: int, iterations: int) -> Metrics:
    """Columns of a language run: proxy rises with KL, gold turns down; NaN in iterations without evaluation."""
    rng = np.random.default_rng([seed, zlib.crc32(algo.encode())])
    pace, gamed = LANGUAGE_ALGOS[algo]
    x = np.linspace(1 / iterations, 1, iterations)
    kl = 25 * pace * x * np.exp(0.1 * rng.normal())
    proxy = 1.2 * pace * (1 - np.exp(-kl / 8)) * np.exp(0.08 * rng.normal()) + 0.02 * rng.normal(size=iterations)
    gold = 0.8 * proxy - gamed * (kl / 25) ** 2 + 0.03 * rng.normal(size=iterations)
    evaluated = (np.arange(iterations) % 5 == 4) | (np.arange(iterations) == iterations - 1)
    held_out = {
        "reward/eval_proxy_mean": proxy - 0.5,
        "reward/eval_gold_mean": gold - 0.2,
        "reward/eval_proxy_change": proxy,
        "reward/eval_gold_change": gold,
        "kl/eval_ref_sequence": kl,
    }
    metrics = {name: np.where(evaluated, values, np.nan) for name, values in held_out.items()}
    metrics |= {f"{name}_se": np.where(evaluated, 0.03, np.nan) for name in held_out}
    kl_old = 0.004 * pace * np.exp(0.4 * rng.normal(size=iterations))
    return metrics | {
        "reward/train_mean": proxy - 0.5 + 0.05 * rng.normal(size=iterations),
        "reward/train_std": np.full(iterations, 0.7),
        "kl/ref_exact": kl / 40,
        "kl/old_exact": kl_old,
        "language/length_mean": 30 + 10 * x + rng.normal(size=iterations),
        "language/truncated_share": np.full(iterations, 0.1),
        "language/num_tokens": np.full(iterations, 64 * 30.0),
        "weight/relative_mean": np.clip(1 - 0.1 * x, 0, 1),
        "ess/ratio": np.clip(1 - 0.05 * x, 0, 1),
        "time/collect_s": np.full(iterations, 2.0),
        "time/update_s": np.full(iterations, 3.0),
        "time/iteration_s": np.full(iterations, 5.2),
    }


def write_samples(folder: Path, algo: str, seed: int, iterations: int, completion: str = "") -> None:
    """samples.parquet: four held-out prompts at iteration 0 (the reference), halfway and at the end."""
    rows = []
    for iteration in (0, iterations // 2, iterations):
        for prompt_id in range(4):
            text = completion or f"An answer of {algo} after {iteration} iterations, number {prompt_id}."
            row: dict[str, Any] = {"run_id": folder.name, "algo": algo, "scale": "embedded", "seed": seed}
            row |= {"iteration": iteration, "prompt_id": prompt_id, "prompt": f"Question {prompt_id}: why?", "completion": text}
            row |= {"proxy": 0.01 * iteration + prompt_id, "gold": float("nan") if prompt_id == 3 else 0.5 * prompt_id}
            rows.append(row | {"kl_ref": 0.1 * iteration, "length": len(text.split()), "finished": prompt_id != 2})
    pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")


def write_language(results: Path, seeds: int = 3, iterations: int = 30, name: str = "embedded_rlhf") -> list[Path]:
    """A language experiment at the embedded scale, in the format of the language task."""
    folders = []
    for algo in LANGUAGE_ALGOS:
        for seed in range(1, seeds + 1):
            metrics = language_metrics_of(algo, seed, iterations)
            folder = write_run(
                results, "qwen_rlhf", algo, seed, iterations, metrics=metrics, scale="embedded", name=name, total_env_steps=None
            )
            write_samples(folder, algo, seed, iterations)
            folders.append(folder)
    return folders


def write_parquet(
    path: Path, metrics: Mapping[str, Any], start: int = 0, stop: int | None = None, attempt: int = 1, scale: str | None = None
) -> None:
    """Rows start..stop of the metrics with their counters."""
    rows = range(start, stop if stop is not None else len(next(iter(metrics.values()))))
    counters = {"iteration": [i + 1 for i in rows], "env_steps": [(i + 1) * STEPS for i in rows]}
    columns = {key: pa.array(values, pa.int64()) for key, values in counters.items()}
    columns["attempt"] = pa.array([attempt] * len(rows), pa.int64())
    if scale:
        columns["scale"] = pa.array([scale] * len(rows)).dictionary_encode()
    for name, values in metrics.items():
        kind = pa.list_(pa.float32()) if is_list(name) else pa.float32()
        columns[name] = pa.array([values[i] for i in rows], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_run(
    results: Path,
    task: str = "hopper",
    algo: str = "ppo",
    seed: int = 1,
    iterations: int = 30,
    *,
    metrics: Metrics | None = None,
    status: str = "completed",
    reached: int | None = None,
    reason: str | None = None,
    scale: str | None = None,
    declared: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """One run folder; an unfinished one (reached) has parts, a finished one metrics.parquet.

    declared: the config's own `metrics`; changes: further keys of the config.
    """
    config = config_of(task, algo, seed, iterations, **changes) | ({"metrics": dict(declared)} if declared else {})
    digest = f"{zlib.crc32(json.dumps(config, sort_keys=True).encode()):08x}"
    folder = results / config["name"] / f"{task}-{algo}-s{seed}-{digest}"
    folder.mkdir(parents=True)
    metrics = metrics_of(task, algo, seed, iterations) if metrics is None else metrics
    if reached is None:
        write_parquet(folder / "metrics.parquet", metrics, scale=scale)
    else:
        write_parquet(folder / "metrics" / "part-0001-000000.parquet", metrics, 0, reached)
    state = {"status": status, "pid": 1, "attempt": 1, "iteration": reached or iterations, "num_iterations": iterations}
    state |= {"reason": reason, "updated": "2026-01-01T00:00:00+00:00"}
    provenance = {
        "run_id": folder.name,
        "config_hash": digest,
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "versions": {"python": "3.11.9", "torch": "2.13.0", "mujoco": "4.0.0"},
        "command": f"rgpo-run -m experiment={config['name']}",
        "host": {"cpu": "some cpu", "cores": 2, "platform": "Linux"},
        "num_threads": 1,
        "started": f"2026-01-01T00:00:{seed:02d}+00:00",
        "attempt": 1,
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def write_experiment(
    results: Path,
    tasks: Sequence[str] = TASKS,
    algos: Sequence[str] = tuple(ALGOS),
    seeds: int = 3,
    iterations: int = 30,
) -> list[Path]:
    """tasks x algos x seeds finished runs."""
    grid = [(task, algo, seed) for task in tasks for algo in algos for seed in range(1, seeds + 1)]
    return [write_run(results, task, algo, seed, iterations) for task, algo, seed in grid]


def write_gates(path: Path) -> None:
    """A table of gates in the format of rgpo.cli.gates_table."""
    d = np.linspace(-3, 3, 121)
    r = np.exp(d)
    curves = {
        "identity": dict.fromkeys((1, -1), (r, r)),
        "log": {side: (d, np.ones_like(d)) for side in (1, -1)},
        "sigmoid": {side: (1 / (1 + np.exp(-4 * (r - 1))), r / np.cosh(2 * (r - 1)) ** 2) for side in (1, -1)},
        "sigmoid_log": {side: (1 / (1 + np.exp(-4 * d)), 1 / np.cosh(2 * d) ** 2) for side in (1, -1)},
        "open": {side: (np.ones_like(d), np.zeros_like(d)) for side in (1, -1)},
        "clip": {1: (np.minimum(r, 1.2), r * (r < 1.2)), -1: (np.maximum(r, 0.8), r * (r > 0.8))},
    }
    rows = [(g, float(a), *point) for g, both in curves.items() for a, y in both.items() for point in zip(d, *y, strict=True)]
    names = ("gate", "advantage", "log_ratio", "gate_value", "weight")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a csv table of the report."""
    with path.open() as file:
        return list(csv.DictReader(file))


def page_data(page: Path, part: str = "data") -> Any:
    """The data, or the rows of long tables, that a page embeds."""
    found = re.search(rf'<script type="application/gzip" id="{part}">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(gzip.decompress(base64.b64decode(found[1])))
