"""From the command line's words to checked, resolved configurations; every complaint is one ConfigError sentence."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rgpo.cli.overrides import hydra_on
from rgpo.errors import ConfigError, close_matches, first_line, require
from rgpo.paths import conf_dir

AXES = ("gate", "ref_gate", "dual", "advantage", "penalty", "update")
GROUPS = {"task": "task", "gate": "gate", "ref_gate": "gate@ref_gate", "algo": "algo"} | {
    key: key for key in ("dual", "advantage", "penalty", "update")
}
NOT_HASHED = (
    "name",
    "results_dir",
    "num_threads",
    "memory_gb",
    "plan",
    "force",
    "checkpoint_every_s",
    "exports",
)  # make no other run; num_threads changes how its numbers are rounded


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: the words that select it, its plain resolved configuration and its folder."""

    overrides: tuple[str, ...]
    config: dict[str, Any]
    run_dir: Path

    @property
    def config_hash(self) -> str:
        """The last part of the folder's name."""
        return self.run_dir.name.rsplit("-", 1)[1]


def compose_jobs(overrides: list[str], multirun: bool, config_dir: str | None) -> list[Job]:
    """Every run that a command line asks for, composed and checked before the first one starts. ConfigError otherwise."""
    with hydra_on(config_dir) as composer:
        if multirun:
            return [make_job(*composer(cell), tuple(cell)) for cell in composer.cells(overrides)]
        for word, item in zip(overrides, composer.parse(overrides), strict=True):
            if item.is_sweep_override():
                raise ConfigError(f"{word}: is a sweep, add -m to run all of its cells.")
        return [make_job(*composer(overrides), tuple(overrides))]


def make_job(composed: DictConfig, choices: Mapping[str, Any], overrides: tuple[str, ...]) -> Job:
    """Resolve and check one composed configuration."""
    config = plain(composed)
    config["choices"] = {key: choices[group] for key, group in GROUPS.items()} | {"scale": choices.get("scale", "none")}
    check(config)
    digest = config_hash(config)
    name = f"{config['choices']['task']}-{config['choices']['algo']}-s{config['seed']}-{digest}"
    return Job(overrides, config, Path(config["results_dir"]) / str(config["name"]) / name)


def plain(composed: DictConfig) -> dict[str, Any]:
    """The configuration, which has no hydra node, resolved, as dicts and lists. ConfigError for a missing value."""
    try:
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}=???: has no default, give it on the command line.") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {first_line(error)}.") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hex digits over everything that can change a number of the run by more than rounding."""
    relevant = {key: value for key, value in config.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]


def check(config: Mapping[str, Any]) -> None:
    """Refuse unknown keys, wrong types, impossible values and impossible combinations. ConfigError."""
    known, published = _known_keys()
    _refuse_unknown("", config, known)
    _refuse_unknown("published.", config["published"], published)
    require(type(config["seed"]) is not int or config["seed"] < 2**63, "seed", config["seed"], "must be below 2^63.")
    for key in ("seed", "eval_every", "gradvar_every"):
        value = config[key]
        require(type(value) is int and value >= 0, key, value, "must be a whole number, 0 or more.")
    for key in ("total_env_steps", "num_iterations", "num_threads", "memory_gb"):
        value = config[key]
        empty = key == "num_iterations" and value is None
        require(empty or (type(value) is int and value > 0), key, value, "must be a positive whole number.")
    for key in ("checkpoint_every_s", "kl_spike_threshold"):
        value = config[key]
        require(isinstance(value, int | float) and value >= 0, key, value, "must be a number, 0 or more.")
    for key in ("plan", "force"):
        require(isinstance(config[key], bool), key, config[key], "must be true or false.")
    name = str(config["name"])
    require(re.fullmatch(r"[\w.-]+", name) is not None and name[0] != ".", "name", name, "use letters, digits, - and _.")
    for axis in ("task", *AXES):
        _check_node(axis, config[axis])
    build(config)
    _check_task(json.dumps(config["task"]))


@functools.cache
def _check_task(node: str) -> None:
    """What a task looks up outside the configuration, once for all cells that share it. ConfigError."""
    make("task", json.loads(node)).check()


@functools.cache
def _known_keys() -> tuple[set[str], set[str]]:
    """Top-level keys, and those of `published`."""
    base = OmegaConf.load(conf_dir() / "config.yaml")
    assert isinstance(base, DictConfig)
    own = {str(key) for key in base if key not in ("defaults", "hydra")}
    return own | {"choices", "task", *AXES}, {str(key) for key in base.published}


def build(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The task and the algorithm that a plain configuration describes. ConfigError."""
    from rgpo.learning.algorithm import Algorithm

    parts = {axis: make(axis, config[axis]) for axis in ("task", *AXES)}
    task = parts.pop("task")
    return task, task.admit(Algorithm(**parts, kl_spike_threshold=config["kl_spike_threshold"]))


def make(key: str, node: Mapping[str, Any]) -> Any:
    """Call a node's _target_ with its other entries. ConfigError with the object's own sentence."""
    try:
        return _made(node)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(f"{key}: cannot be made from {dict(node)} ({type(error).__name__}: {first_line(error)}).") from error


def _made(node: Any) -> Any:
    if isinstance(node, Mapping):
        parts = {name: _made(value) for name, value in node.items() if name != "_target_"}
        return _target(str(node["_target_"]))(**parts) if "_target_" in node else parts
    return [_made(value) for value in node] if isinstance(node, list) else node


def _target(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _check_node(key: str, node: Any) -> None:
    """Keys and simple types of a node with a _target_, and of the nodes below it."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{key}={node}: needs a _target_, choose an option of the group {GROUPS.get(key, key)}.")
    try:
        target = _target(str(node["_target_"]))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={node['_target_']}: cannot be imported ({first_line(error)}).") from error
    known = {p.name for p in inspect.signature(target).parameters.values() if p.kind is not p.VAR_KEYWORD}
    _refuse_unknown(f"{key}.", {k: v for k, v in node.items() if k != "_target_"}, known)
    types = {f.name: str(f.type) for f in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else {}
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:
            _check_node(f"{key}.{name}", value)
        else:
            _check_type(f"{key}.{name}", value, types.get(str(name), ""))


def _check_type(key: str, value: Any, declared: str) -> None:
    options = {part.strip() for part in declared.split("|")}
    if not options <= {"int", "float", "bool", "str", "None"} or declared == "":
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    ok = (
        ("None" in options and value is None)
        or ("bool" in options and isinstance(value, bool))
        or ("str" in options and isinstance(value, str))
        or ("int" in options and type(value) is int)
        or ("float" in options and number and not math.isnan(value))
    )
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "None": "null"}
    require(ok, key, value, f"must be {' or '.join(names[o] for o in sorted(options))}.")


def _refuse_unknown(prefix: str, node: Mapping[Any, Any], known: Iterable[str]) -> None:
    for key in node:
        if key not in set(known):
            listing = ", ".join(sorted(known))
            near = close_matches(str(key), known) or f" The keys are {listing}."
            raise ConfigError(f"{prefix}{key}={node[key]}: is not a known key and would be ignored.{near}")
