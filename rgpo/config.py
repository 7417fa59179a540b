"""From the command line's words to checked, resolved configurations; every complaint is one ConfigError sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rgpo.errors import ConfigError, close_matches, require
from rgpo.paths import conf_dir

AXES = ("gate", "ref_gate", "dual", "advantage", "penalty", "update")
GROUPS = {"task": "task", "gate": "gate", "ref_gate": "gate@ref_gate", "algo": "algo"} | {
    key: key for key in ("dual", "advantage", "penalty", "update")
}
NOT_HASHED = (
    "name",
    "results_dir",
    "num_threads",
    "plan",
    "force",
    "checkpoint_every_s",
    "exports",
)  # change no number of the run


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
    _refuse_shadowing(config_dir)
    search = [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cells = _sweep(overrides, search) if multirun else [overrides]
        if not multirun:
            _refuse_ambiguous(overrides)
        return [_job(cell, search, config_dir) for cell in cells]


def _job(overrides: list[str], search: list[str], config_dir: str | None) -> Job:
    composed = _compose([*overrides, *search], config_dir)
    choices = composed.hydra.runtime.choices
    return make_job(composed, choices, tuple(overrides))


def make_job(composed: DictConfig, choices: Mapping[str, Any], overrides: tuple[str, ...]) -> Job:
    """Resolve and check one composed configuration."""
    config = plain(composed)
    config["choices"] = {key: choices[group] for key, group in GROUPS.items()} | {"scale": choices.get("scale", "none")}
    check(config)
    digest = config_hash(config)
    name = f"{config['choices']['task']}-{config['choices']['algo']}-s{config['seed']}-{digest}"
    return Job(overrides, config, Path(config["results_dir"]) / str(config["name"]) / name)


def plain(composed: DictConfig) -> dict[str, Any]:
    """The configuration without hydra's own node, resolved, as dicts and lists. ConfigError for a missing value."""
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    try:
        missing = OmegaConf.missing_keys(own)
        if missing:
            key = sorted(missing)[0]
            raise ConfigError(f"{key}=???: has no default, give it on the command line.")
        resolved = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {_first_line(error)}.") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def config_hash(config: Mapping[str, Any]) -> str:
    """Eight hex digits over everything that can change a number of the run."""
    relevant = {key: value for key, value in config.items() if key not in NOT_HASHED}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:8]


def check(config: Mapping[str, Any]) -> None:
    """Refuse unknown keys, wrong types, impossible values and impossible combinations. ConfigError."""
    base = OmegaConf.load(conf_dir() / "config.yaml")
    assert isinstance(base, DictConfig)
    known = {*(str(key) for key in base if key not in ("defaults", "hydra")), "choices", "task", *AXES}
    _refuse_unknown("", config, known)
    _refuse_unknown("published.", config["published"], {str(key) for key in base.published})
    for key in ("seed", "eval_every", "gradvar_every"):
        value = config[key]
        require(type(value) is int and value >= 0, key, value, "must be a whole number, 0 or more.")
    for key in ("total_env_steps", "num_iterations", "num_threads"):
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
    task, _ = build(config)
    task.check()


def build(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The task and the algorithm that a plain configuration describes. ConfigError."""
    from rgpo.algorithm import Algorithm

    parts = {axis: make(axis, config[axis]) for axis in ("task", *AXES)}
    task = parts.pop("task")
    return task, task.admit(Algorithm(**parts, kl_spike_threshold=config["kl_spike_threshold"]))


def make(key: str, node: Mapping[str, Any]) -> Any:
    """Instantiate one node by its _target_. ConfigError with the object's own sentence."""
    try:
        return instantiate(dict(node), _convert_="all")
    except InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, ConfigError):
            cause = cause.__cause__
        if isinstance(cause, ValueError):
            raise ConfigError(str(cause)) from error
        raise ConfigError(f"{key}: cannot be made from {dict(node)} ({type(cause).__name__}: {_first_line(cause)}).") from error


def _check_node(key: str, node: Any) -> None:
    """Keys and simple types of a node with a _target_, and of the nodes below it."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{key}={node}: needs a _target_, choose an option of the group {GROUPS.get(key, key)}.")
    module, _, name = str(node["_target_"]).rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={node['_target_']}: cannot be imported ({_first_line(error)}).") from error
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


def _sweep(overrides: list[str], search: list[str]) -> list[list[str]]:
    """The cells of a sweep: the experiment's grid, overridden by the command line's, in the order hydra runs them."""
    parser = OverridesParser.create()
    parsed = _parse(parser, overrides)
    fixed = [word for word, item in zip(overrides, parsed, strict=True) if not item.is_sweep_override()]
    composed = _compose([*fixed, *search], None)
    params = composed.hydra.sweeper.params or {}
    words = [f"{key}={value}" for key, value in params.items()] + overrides
    batches = BasicSweeper.split_arguments(_parse(parser, words), max_batch_size=None)
    return [list(cell) for batch in batches for cell in batch]


def _parse(parser: OverridesParser, words: list[str]) -> list[Any]:
    try:
        return list(parser.parse_overrides(words))
    except HydraException as error:
        raise ConfigError(
            f"command line: {_first_line(error)}; write key=value, quoted where the shell would split it."
        ) from error


def _refuse_ambiguous(overrides: list[str]) -> None:
    for word, item in zip(overrides, _parse(OverridesParser.create(), overrides), strict=True):
        if item.is_sweep_override():
            raise ConfigError(f"{word}: is a sweep, add -m to run all of its cells.")


def _compose(overrides: list[str], config_dir: str | None) -> DictConfig:
    try:
        composed: DictConfig = compose("config", overrides, return_hydra_config=True)
        return composed
    except MissingConfigException as error:
        match = re.search(r"[Cc]ould not find '([^']+)'", str(error))
        path = match.group(1) if match else str(error.missing_cfg_file)
        group, _, option = path.strip("/").rpartition("/")
        options = group_options(group, config_dir)
        near = close_matches(option, options) or f" The options are {', '.join(options)}."
        raise ConfigError(f"{group}={option}: is not an option of the group {group}.{near}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error


def _explain(error: Exception, overrides: list[str]) -> str:
    text = str(error)
    match = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if match is None:
        if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
            text = str(error.__cause__)
        return f"command line {' '.join(overrides)}: {text.splitlines()[0].rstrip('.')}."
    key = match.group(1)
    value = next((word.split("=", 1)[1] for word in overrides if word.startswith(f"{key}=")), "")
    base = compose("config", [])
    names = sorted({*_flat_keys(OmegaConf.to_container(base)), *GROUPS.values(), "experiment"})
    near = close_matches(key, names)
    if not near and "." in key:
        head, _, tail = key.rpartition(".")
        near = close_matches(tail, [name.rpartition(".")[2] for name in names if name.startswith(head)])
    listing = near or " `rgpo-run --cfg job` lists the keys."
    return f"{key}={value}: is not a known key.{listing}"


def _flat_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return []
    own = {key: value for key, value in node.items() if key != "_target_"}
    return [name for key, value in own.items() for name in (f"{prefix}{key}", *_flat_keys(value, f"{prefix}{key}."))]


def group_options(group: str, config_dir: str | None = None) -> list[str]:
    """Names of a group's options, the user's among them; names with a leading underscore are not options."""
    folders = [conf_dir() / group, *([Path(config_dir) / group] if config_dir else [])]
    files = [file for folder in folders for file in folder.glob("*.yaml")]
    return sorted(file.stem for file in files if not file.name.startswith("_"))


def _refuse_shadowing(config_dir: str | None) -> None:
    if config_dir is None:
        return
    own = Path(config_dir)
    if not own.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: is not a folder, give one that holds gate/, algo/ and so on.")
    for file in own.rglob("*.yaml"):
        if (conf_dir() / file.relative_to(own)).exists():
            name = file.relative_to(own)
            raise ConfigError(
                f"--config-dir {config_dir}: {name} has the name of a packaged file and would be ignored, rename it."
            )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
