"""Turn command-line arguments into checked, resolved configurations; every error is a ConfigError with a one-sentence message."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from rgpo.cli.build import GROUPS, build, make, present_name
from rgpo.cli.checks import check_keys, check_length, check_task, check_values, plain
from rgpo.cli.functions import with_reward_nodes
from rgpo.cli.hints import Node
from rgpo.cli.hydra_words import read_by_optuna
from rgpo.cli.overrides import Choices, Composer, hydra_on
from rgpo.cli.targets import make_importable
from rgpo.cli.unused import refuse_unused
from rgpo.cli.words import flat, typed_keys
from rgpo.errors import ConfigError, EnvironmentFault, shell_word
from rgpo.paths import conf_dir
from rgpo.runtime import continuation, run_folder
from rgpo.runtime.provenance import redact_word
from rgpo.runtime.reader import user_path
from rgpo.runtime.schema import NOT_IDENTITY
from rgpo.runtime.task_name import folder_name

__all__ = ["Job", "build", "compose_jobs", "make", "make_job"]


@dataclass(frozen=True)
class Job:
    """One run: the overrides that select it, its resolved configuration and its folder."""

    overrides: tuple[str, ...]
    config: dict[str, object]
    run_dir: Path
    config_dir: str | None = None

    @property
    def config_hash(self) -> str:
        """The hash at the end of the folder's name."""
        return self.run_dir.name.rsplit("-", 1)[1]

    @property
    def command(self) -> str:
        """The command line that starts only this run, with secrets redacted."""
        own = [f"--config-dir={self.config_dir}"] if self.config_dir else []
        words = (word for word in self.overrides if not word.startswith("pause_at="))
        return " ".join(map(shell_word, ["rgpo-run", *own, *map(redact_word, words)]))

    @property
    def plan(self) -> bool:
        """True if the run should only be listed."""
        return bool(self.config["plan"])

    @property
    def force(self) -> bool:
        """True if an existing run should be moved aside."""
        return bool(self.config["force"])

    def choice(self, group: str) -> str:
        """The option selected from a config group, or "none"."""
        return str(cast(Node, self.config["choices"]).get(group) or "none")

    def describe(self) -> dict[str, str]:
        """The algorithm's parts by name."""
        return build(self.config)[1].describe()


def compose_jobs(overrides: list[str], multirun: bool, config_dir: str | None) -> list[Job]:
    """Compose and check every run of a command line before the first one starts.

    Raises: ConfigError if any of them cannot run.
    """
    config_dir = None if config_dir is None else str(user_path(config_dir))
    with hydra_on(config_dir) as composer:
        return jobs_of(composer, overrides, multirun)


def jobs_of(composer: Composer, overrides: list[str], multirun: bool) -> list[Job]:
    """Same as ``compose_jobs``, with a composer that can be reused for several command lines."""
    overrides = composer.unfolded(overrides)
    parsed = composer.parse(overrides, sweep=multirun)
    optuna = any(item.key_or_group == "hydra/sweeper" and item.value() == "optuna" for item in parsed)
    for word, item in zip(overrides, parsed, strict=True):
        if item.key_or_group.startswith("hydra.sweeper.") and not optuna:
            raise ConfigError(f"{word}: {read_by_optuna(item.key_or_group)}")
        if item.is_sweep_override() and not multirun:
            raise ConfigError(f"{word}: is a sweep; add -m to run all of its jobs.")
        if item.is_hydra_override() and not multirun and item.key_or_group != "hydra.searchpath":
            raise ConfigError(f"{word}: is read by sweeps only; add -m, or leave it out.")
        if not item.is_delete() and not item.is_sweep_override() and item.value() == {}:
            raise ConfigError(f"{word}: sets nothing, because entries are added to those there are; leave it out.")
    cells = composer.cells(overrides) if multirun else [overrides]
    typed = [typed_keys(cell, composer.parse(cell)) for cell in cells]
    folder = composer.config_dir
    return [make_job(*composer(cell), tuple(cell), keys, folder) for cell, keys in zip(cells, typed, strict=True)]


def make_job(
    composed: DictConfig,
    choices: Choices,
    overrides: tuple[str, ...],
    typed: Mapping[str, str] | None = None,
    config_dir: str | None = None,
) -> Job:
    """Resolve and check one composed configuration; typed: the keys that the user set, none of which may be ignored.

    Raises: ConfigError if it cannot run.
    """
    config = with_reward_nodes(plain(composed), typed or ())
    config = with_own_policy(config, choices.get("policy@task.policy"), typed or ())
    check_keys(config)
    config["choices"] = {key: choices.get(group) for key, group in GROUPS.items()} | {"scale": choices.get("scale", "none")}
    check_values(config)
    make_importable(config_dir)
    task, algorithm = build(config)
    continuation.check(config, check_length(config, task))
    refuse_unused(typed or {}, config, algorithm.requirements)
    digest = config_hash(config)
    name = folder_name(flat(config), config["seed"], digest)
    job = Job(overrides, config, Path(str(config["results_dir"])) / str(config["name"]) / name, config_dir)
    try:
        check_task(json.dumps(config["task"]))
    except EnvironmentFault as fault:
        where = "" if job.plan else run_folder.record_fault(job.run_dir, fault)
        raise ConfigError(f"{fault}{where}") from fault
    return job


def with_own_policy(config: dict[str, object], option: object, typed: Collection[str]) -> dict[str, object]:
    """If task.policy has another _target_ than its packaged option, drop the option's other keys unless the user typed them."""
    task, file = config.get("task"), conf_dir() / "policy" / f"{option}.yaml"
    policy = task.get("policy") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(policy, dict) or not file.is_file():
        return config
    own = _policy_option(file)
    if policy.get("_target_") == present_name(str(own["_target_"])):
        return config
    kept = {key: value for key, value in policy.items() if key == "_target_" or key not in own or f"task.policy.{key}" in typed}
    return config | {"task": task | {"policy": kept}}


@functools.cache
def _policy_option(file: Path) -> Node:
    return cast(Node, OmegaConf.to_container(OmegaConf.load(file), resolve=False))


def config_hash(config: Node) -> str:
    """Eight hex digits that identify all settings that can change the run's numbers by more than rounding."""
    relevant = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    earlier = relevant.pop("resume_from", None)
    if earlier is not None:  # by name, since a results folder may move
        relevant["resume_from"] = Path(str(earlier)).name
    return hashlib.sha256(json.dumps(_ordered(relevant)).encode()).hexdigest()[:8]


def num_alike_of(jobs: Sequence[Job]) -> dict[str, int]:
    """Folder name -> number of runs with the same configuration apart from the seed, this one included."""
    shapes = {job.run_dir.name: config_hash(job.config | {"seed": 0}) for job in jobs}
    count = Counter(shapes.values())
    return {name: count[shape] for name, shape in shapes.items()}


def _ordered(node: object) -> object:
    if isinstance(node, Mapping):
        return {key: _ordered(value) for key, value in sorted((str(key), value) for key, value in node.items())}
    return [_ordered(value) for value in node] if isinstance(node, list) else node
