"""From the words of a command line to checked, resolved configurations; every complaint is one ConfigError sentence."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from rgpo.cli.build import GROUPS, build, check_type, declared_ranges, make, present_name, refuse_unknown
from rgpo.cli.functions import with_reward_nodes
from rgpo.cli.hints import Node, parameters_of, shown
from rgpo.cli.hydra_words import read_by_optuna
from rgpo.cli.overrides import Choices, Composer, hydra_on
from rgpo.cli.targets import make_importable
from rgpo.cli.unused import refuse_unused
from rgpo.cli.words import flat, former_name, preset_of, typed_keys
from rgpo.core.ranges import count
from rgpo.errors import ConfigError, EnvironmentFault, close_matches, first_line, require, shell_word
from rgpo.learning.types import Task
from rgpo.paths import conf_dir
from rgpo.runtime import continuation, run_folder
from rgpo.runtime.own_metrics import glossary
from rgpo.runtime.provenance import redact_word
from rgpo.runtime.reader import user_path
from rgpo.runtime.schema import AXES, NOT_IDENTITY
from rgpo.runtime.settings import MOST_ITERATIONS, Settings
from rgpo.runtime.task_name import folder_name
from rgpo.runtime.trackers import ADAPTERS

__all__ = ["Job", "build", "compose_jobs", "make", "make_job"]


@dataclass(frozen=True, kw_only=True)
class LaunchSettings(Settings):
    """Also the keys that are read here and by launchers."""

    memory_gb: int = field(metadata=count(1_000_000))
    plan: bool
    force: bool
    on_failure: Literal["stop", "continue"]
    design: dict[str, object] | None


@dataclass(frozen=True)
class Job:
    """One run: the words that select it, its plain resolved configuration and its folder."""

    overrides: tuple[str, ...]
    config: dict[str, object]
    run_dir: Path
    config_dir: str | None = None

    @property
    def config_hash(self) -> str:
        """The last part of the folder's name."""
        return self.run_dir.name.rsplit("-", 1)[1]

    @property
    def command(self) -> str:
        """The command line of this run alone, without secrets."""
        own = [f"--config-dir={self.config_dir}"] if self.config_dir else []
        words = (word for word in self.overrides if not word.startswith("pause_at="))
        return " ".join(map(shell_word, ["rgpo-run", *own, *map(redact_word, words)]))

    @property
    def plan(self) -> bool:
        """True if the run is to be listed only."""
        return bool(self.config["plan"])

    @property
    def force(self) -> bool:
        """True if an existing run is to be moved aside."""
        return bool(self.config["force"])

    def choice(self, group: str) -> str:
        """The option selected of a group; "none" where there is none."""
        return str(cast(Node, self.config["choices"]).get(group) or "none")

    def describe(self) -> dict[str, str]:
        """The parts of the algorithm by name."""
        return build(self.config)[1].describe()


def compose_jobs(overrides: list[str], multirun: bool, config_dir: str | None) -> list[Job]:
    """Every run of a command line, composed and checked before the first one starts.

    Raises: ConfigError if any of them cannot run.
    """
    config_dir = None if config_dir is None else str(user_path(config_dir))
    with hydra_on(config_dir) as composer:
        return jobs_of(composer, overrides, multirun)


def jobs_of(composer: Composer, overrides: list[str], multirun: bool) -> list[Job]:
    """As ``compose_jobs``, with a composer that may be used for several command lines."""
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
    """One composed configuration, resolved and checked; typed: the keys that the user set, each of which must be read.

    Raises: ConfigError if it cannot run.
    """
    config = with_reward_nodes(plain(composed), typed or ())
    config = with_own_policy(config, choices.get("policy@task.policy"), typed or ())
    _check_keys(config)
    config["choices"] = {key: choices.get(group) for key, group in GROUPS.items()} | {"scale": choices.get("scale", "none")}
    _check_values(config)
    make_importable(config_dir)
    task, algorithm = build(config)
    continuation.check(config, _check_length(config, task))
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
    """A configuration whose task.policy has another _target_ than its packaged option keeps of the option's keys those typed."""
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


def plain(composed: DictConfig) -> dict[str, object]:
    """A configuration without hydra's node, resolved, as dicts and lists, without presets and with present class names.

    Raises: ConfigError for a missing value, an interpolation that does not resolve, or a preset that nothing reads.
    """
    try:
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}=???: has no default; give it on the command line.") from error
    except Exception as error:  # whatever a resolver raises
        former = re.search(r"published\.\w+", str(error))
        remedy = f"; it is now {preset_of(former[0])}" if former else ""
        raise ConfigError(f"{getattr(error, 'full_key', 'command line')}: {first_line(error)}{remedy}.") from error
    assert isinstance(resolved, dict)
    config = {str(key): value for key, value in resolved.items()}
    _check_presets(composed, config.pop("presets", {}))
    for key in ("results_dir", "resume_from"):
        if str(config.get(key)).startswith("~"):
            config[key] = str(user_path(str(config[key])))
    return cast(dict[str, object], _with_present_targets(config))


def _check_presets(composed: DictConfig, presets: object) -> None:
    """Presets are those of conf/presets and whatever an option of the user's reads."""
    unknown = [key for key, value in flat(presets).items() if key not in _known_presets() and not isinstance(value, Mapping)]
    if unknown:
        text = str(OmegaConf.to_container(composed, resolve=False))
        for key in unknown:
            if f"${{presets.{key}}}" not in text:
                near = close_matches(key, _known_presets())
                raise ConfigError(f"presets.{key}={shown(flat(presets)[key])}: is not a preset that anything reads.{near}")


@functools.cache
def _known_presets() -> tuple[str, ...]:
    return tuple(flat(OmegaConf.to_container(OmegaConf.load(conf_dir() / "presets" / "control.yaml"))))


def _with_present_targets(node: object) -> object:
    if isinstance(node, list):
        return [_with_present_targets(entry) for entry in node]
    if not isinstance(node, Mapping):
        return node
    found = {key: _with_present_targets(value) for key, value in node.items()}
    return found | ({"_target_": present_name(str(node["_target_"]))} if "_target_" in node else {})


def config_hash(config: Node) -> str:
    """Eight hex digits over everything that can change a number of the run by more than rounding."""
    relevant = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    earlier = relevant.pop("resume_from", None)
    if earlier is not None:  # by its name: a results folder may move
        relevant["resume_from"] = Path(str(earlier)).name
    return hashlib.sha256(json.dumps(_ordered(relevant)).encode()).hexdigest()[:8]


def num_alike_of(jobs: Sequence[Job]) -> dict[str, int]:
    """The number of runs that differ from a run in their seed alone, this one included, by the name of its folder."""
    shapes = {job.run_dir.name: config_hash(job.config | {"seed": 0}) for job in jobs}
    count = Counter(shapes.values())
    return {name: count[shape] for name, shape in shapes.items()}


def _ordered(node: object) -> object:
    if isinstance(node, Mapping):
        return {key: _ordered(value) for key, value in sorted((str(key), value) for key, value in node.items())}
    return [_ordered(value) for value in node] if isinstance(node, list) else node


def _check_keys(config: Node) -> None:
    """Refuse top-level keys that are unknown or missing."""
    known = _known_keys()
    for key, value in config.items():
        if key not in known:
            _refuse_former(key, value)
    refuse_unknown("", config, known)
    for key in ("metrics", *parameters_of(LaunchSettings).hints):
        if key not in config and key != "choices":
            raise ConfigError(f"~{key}: cannot be deleted; give it a value.")


def _check_values(config: Node) -> None:
    """Types and ranges of top-level keys."""
    ranges = declared_ranges(LaunchSettings)
    for key, hint in parameters_of(LaunchSettings).hints.items():
        check_type(key, config[key], hint, ranges.get(key))
    LaunchSettings.of(config)
    if config["total_env_steps"] is None and config["num_iterations"] is None:
        raise ConfigError("num_iterations=null: gives the run no length; set num_iterations or total_env_steps.")
    exports = cast(list[str], config["exports"])
    for tracker in exports:
        if tracker not in ADAPTERS or exports.count(tracker) > 1:
            remedy = f"choose from {', '.join(ADAPTERS)}, each at most once"
            raise ConfigError(f"exports={shown(exports)}: {tracker} is unknown or repeated; {remedy}.")
    glossary(config)


def _check_length(config: Node, task: Task) -> int:
    """The number of iterations.

    Raises: ConfigError if a run of total_env_steps has more than a table holds.
    """
    total, iterations = config["total_env_steps"], config["num_iterations"]
    if iterations is None and isinstance(total, int):
        iterations = task.plan_iterations(total)
        remedy = f"makes {iterations:,} iterations of {task.batch_size} samples, over {MOST_ITERATIONS:,}; lower it."
        require(iterations <= MOST_ITERATIONS, "total_env_steps", total, remedy)
    assert isinstance(iterations, int)
    return iterations


def _refuse_former(key: str, value: object) -> None:
    """Keys of version 0.1 in a user's yaml."""
    for name in flat(value, f"{key}.") or (key,):
        preset = preset_of(name)
        if preset is not None:
            raise ConfigError(f"{name}={shown(flat({key: value}).get(name))}: is now {preset}; rename it in your yaml.")
    former = former_name(key, shown(value))
    if former is not None:
        raise ConfigError(f"{key}={shown(value)}: {former}")


@functools.cache
def _known_keys() -> tuple[str, ...]:
    base = OmegaConf.load(conf_dir() / "config.yaml")
    return (*(str(key) for key in base if key not in ("defaults", "hydra")), "task", *AXES)


@functools.cache
def check_task(node: str) -> None:
    """Check what a task, given as JSON, reads outside the configuration, once for all jobs that share it.

    Raises: ConfigError if packages, files or environments are missing; EnvironmentFault if an environment cannot be used.
    """
    task: Task = make("task", json.loads(node), Task)
    task.check()
