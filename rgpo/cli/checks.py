"""Checks of a configuration before a run: presets, keys, values, length, and the packages and files that its task needs."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from rgpo.cli.build import check_type, declared_ranges, make, present_name, refuse_unknown
from rgpo.cli.hints import Node, parameters_of, shown
from rgpo.cli.words import flat, former_name, preset_of
from rgpo.core.ranges import count
from rgpo.errors import ConfigError, close_matches, first_line, require
from rgpo.learning.types import Task
from rgpo.paths import conf_dir
from rgpo.runtime.own_metrics import glossary
from rgpo.runtime.reader import user_path
from rgpo.runtime.schema import AXES
from rgpo.runtime.settings import MOST_ITERATIONS, Settings
from rgpo.runtime.trackers import ADAPTERS


@dataclass(frozen=True, kw_only=True)
class LaunchSettings(Settings):
    """The runner's settings and the keys that only the command line and launchers read."""

    memory_gb: int = field(metadata=count(1_000_000))
    plan: bool
    force: bool
    on_failure: Literal["stop", "continue"]
    design: dict[str, object] | None


def plain(composed: DictConfig) -> dict[str, object]:
    """A composed configuration, resolved to dicts and lists, without presets and with current class names.

    Raises: ConfigError for a missing value, an interpolation that cannot be resolved, or an unused preset.
    """
    try:
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}=???: has no default; give it on the command line.") from error
    except Exception as error:  # resolvers may raise anything
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
    """Raises: ConfigError for a preset that is neither in conf/presets nor read by one of the user's options."""
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


def check_keys(config: Node) -> None:
    """Raises: ConfigError for a top-level key that is unknown or missing."""
    known = _known_keys()
    for key, value in config.items():
        if key not in known:
            _refuse_former(key, value)
    refuse_unknown("", config, known)
    for key in ("metrics", *parameters_of(LaunchSettings).hints):
        if key not in config and key != "choices":
            raise ConfigError(f"~{key}: cannot be deleted; give it a value.")


def check_values(config: Node) -> None:
    """Check types and ranges of the top-level keys.

    Raises: ConfigError for a value that cannot be used.
    """
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


def check_length(config: Node, task: Task) -> int:
    """The number of iterations.

    Raises: ConfigError if total_env_steps makes more iterations than a metrics table can hold.
    """
    total, iterations = config["total_env_steps"], config["num_iterations"]
    if iterations is None and isinstance(total, int):
        iterations = task.plan_iterations(total)
        remedy = f"makes {iterations:,} iterations of {task.batch_size} samples, over {MOST_ITERATIONS:,}; lower it."
        require(iterations <= MOST_ITERATIONS, "total_env_steps", total, remedy)
    assert isinstance(iterations, int)
    return iterations


def _refuse_former(key: str, value: object) -> None:
    """Raises: ConfigError for a key of version 0.1 in a user's yaml, with its current name."""
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
    """Check the packages, files and environments that a task (its node as JSON) needs; cached for jobs that share the task.

    Raises: ConfigError if packages, files or environments are missing; EnvironmentFault if an environment cannot be used.
    """
    task: Task = make("task", json.loads(node), Task)
    task.check()
