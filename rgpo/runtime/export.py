"""The exported folder for use outside rgpo: policy/ for control tasks, model/ for language tasks."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from rgpo import atomic
from rgpo.errors import described, is_out_of_memory
from rgpo.learning.export import ExportingPolicy, ExportingTask, Facts, NoExport
from rgpo.learning.types import Policy, State, Task
from rgpo.runtime import manifest, reader
from rgpo.runtime.parts import part_files
from rgpo.runtime.provenance import Provenance
from rgpo.runtime.schema import is_list
from rgpo.runtime.settings import Settings

METRICS = re.compile(r"(return|reward)/.+|language/(length_mean|truncated_share)|kl/(eval_ref_sequence.*|ref_exact|ref_k3.*)")
NOTHING = "neither the task nor the policy has a method export; the checkpoint alone holds the policy"


def folder_of(task: Task, policy: Policy) -> str:
    """The name of the exported folder: policy or model.

    Raises: NoExport if there is no way to save the policy.
    """
    if isinstance(policy, ExportingPolicy):
        return "policy"
    if isinstance(task, ExportingTask):
        return task.export_name
    raise NoExport(NOTHING)


def fill(task: Task, policy: Policy, state: State, folder: Path, facts: Facts) -> None:
    """Write a policy's files to an empty folder.

    Raises: NoExport if the policy cannot be saved; OSError if a file cannot be written.
    """
    if isinstance(policy, ExportingPolicy):
        policy.export(folder, facts)
    elif isinstance(task, ExportingTask):
        task.export(policy, state, folder, facts)
    else:
        raise NoExport(NOTHING)


def finish(task: Task, policy: Policy, state: State, run_dir: Path, facts: Facts) -> str:
    """Replace the run's exported folder; returns the reason if the policy cannot be exported, else "".

    Raises: OSError if the disk is full or a file cannot be written.
    """
    name = "policy/"
    try:
        name = f"{folder_of(task, policy)}/"
        with atomic.replacing_folder(run_dir / name) as aside:
            fill(task, policy, state, aside, facts)
    except NoExport as error:
        return f"no {name}: {error}"
    except OSError:
        raise
    except Exception as error:  # from the user's method, or from a library that cannot save this model
        if is_out_of_memory(error):
            raise
        return f"no {name}: {described(error)}; the checkpoint alone holds the policy"
    return ""


def facts_of(run_dir: Path, config: Mapping[str, object], iteration: int, env_steps: int) -> Facts:
    """The facts about a policy after an iteration, taken from the run's files.

    Raises: NoExport if provenance.json cannot be read.
    """
    settings = Settings.of(config)
    try:
        known = reader.read_json(run_dir / "provenance.json", Provenance)
    except reader.Unreadable as error:
        raise NoExport(f"{error}, from which its origin is taken") from error
    return Facts(
        run_id=run_dir.name,
        task=settings.task,
        algo=settings.choice("algo"),
        seed=settings.seed,
        iteration=iteration,
        env_steps=env_steps,
        command=known.get("command", ""),
        commit=known.get("commit"),
        versions=known.get("versions", {}),
        metrics=latest_metrics(run_dir, iteration),
    )


def latest_metrics(run_dir: Path, iteration: int) -> dict[str, float]:
    """The latest value, up to an iteration, of each metric that describes the policy; skips damaged files with a warning."""
    found: dict[str, tuple[int, float]] = {}
    for path in [run_dir / "metrics.parquet", *part_files(run_dir / "metrics")]:
        try:
            rows = list(_rows(run_dir, path, iteration))
        except reader.Missing:  # the run is unfinished, or the part was joined in the meantime
            continue
        except reader.Unreadable as error:
            warnings.warn(f"{run_dir}: {error}; the metrics recorded with the policy lack its rows.", stacklevel=2)
            continue
        for i, name, value in rows:
            if i >= found.get(name, (0, 0.0))[0]:
                found[name] = (i, value)
    return {name: value for name, (_, value) in sorted(found.items())}


def _rows(run_dir: Path, path: Path, iteration: int) -> Iterator[tuple[int, str, float]]:
    """Iteration, name and value of each finite number up to an iteration.

    Raises: Unreadable if the file is damaged; Missing if it does not exist.
    """
    if damage := manifest.part_damage(path) or manifest.damage(run_dir, (path.name,)).get(path.name):
        raise reader.Unreadable(damage)
    with reader.parquet(path) as file:
        names = [name for name in file.schema_arrow.names if METRICS.fullmatch(name) and not is_list(name)]
        columns = file.read(["iteration", *names], use_threads=False).to_pydict()
        for name in names:
            for i, value in zip(columns["iteration"], columns[name], strict=True):
                if i <= iteration and isinstance(value, float) and math.isfinite(value):
                    yield i, name, value
