"""Functions that a configuration names as file.py:function or module:function, under the rules of rgpo.cli.targets."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from rgpo.cli.hints import Node, shown
from rgpo.cli.targets import OWN, owner_of
from rgpo.errors import ConfigError, close_matches, described
from rgpo.runtime.own_code import own_folders

REWARD = "rgpo.language.rewards.function.Reward"
MODEL = "reward_model"  # instead of a function: the source's reward model
ENTRIES = ("function", "weight", "name")


def find_function(key: str, text: str) -> Callable[..., object]:
    """Import the function named by file.py:function or module:function.

    Raises: ConfigError if there is no such function, it cannot be imported, or its code is not the user's.
    """
    place, colon, name = text.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise ConfigError(f"{key}={text}: names no function; write file.py:function or module:function.")
    try:
        module = _module_of_file(key, text, place) if place.endswith(".py") else _module(key, text, place)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        raise ConfigError(f"{key}={text}: {place} cannot be imported ({described(error)}).") from error
    found = getattr(module, name, None)
    if found is None:
        near = close_matches(name, [n for n, x in vars(module).items() if isinstance(x, types.FunctionType)])
        raise ConfigError(f"{key}={text}: {place} defines no {name}; write the name of a function there.{near}")
    if not isinstance(found, types.FunctionType):
        raise ConfigError(f"{key}={text}: {name} is no function but a {type(found).__name__}; define it with def.")
    home = sys.modules.get(found.__module__)
    if home is not module and (found.__module__ == "rgpo" or owner_of(found.__module__) != "user"):
        raise ConfigError(f"{key}={text}: is {found.__module__}.{found.__qualname__}, which is not defined in {OWN}.")
    return found


def _module(key: str, text: str, place: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise ConfigError(f"{key}={text}: names no module; write file.py:function or module:function.")
    if owner_of(place) != "user":
        raise ConfigError(f"{key}={text}: {place} is not a module of the current directory or of --config-dir; write one there.")
    return importlib.import_module(place)


def _module_of_file(key: str, text: str, place: str) -> types.ModuleType:
    """Load a file from the current directory or, failing that, from one of the user's folders on Python's path."""
    folders = list(dict.fromkeys([Path.cwd().resolve(), *own_folders()]))
    path = Path(place).expanduser()
    files = [(folder / path).resolve() for folder in folders]
    own = [file for folder, file in zip(folders, files, strict=True) if file.is_file() and file.is_relative_to(folder)]
    if not own:
        there = any(file.is_file() for file in files)
        what = "is in none of these folders" if there else "there is no such file"
        raise ConfigError(f"{key}={text}: {what}; put it into the current directory or --config-dir.")
    return _load(own[0])


@functools.cache
def _load(file: Path) -> types.ModuleType:
    """Load a file as a module whose name cannot shadow another one."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def with_reward_nodes(config: Mapping[str, object], typed: Collection[str] = ()) -> dict[str, object]:
    """Convert task.reward, given as text or as a list of {function, weight, name}, to a list of nodes.

    If the user also typed a reward model, it is added as a term of weight 1 unless the list already has it.

    Raises: ConfigError if an entry has another form.
    """
    task = config.get("task")
    if not isinstance(task, Mapping) or task.get("reward") is None:
        return dict(config)
    reward, model = task["reward"], f"task.source.{MODEL}"
    entries = reward if isinstance(reward, list) else [reward]
    if not entries:
        raise ConfigError("task.reward=[]: has no entry; use null for the source's reward model alone.")
    nodes = [_node(entry) for entry in entries]
    source = task.get("source")
    if model in typed and isinstance(source, Mapping) and source.get(MODEL) and all(node["function"] for node in nodes):
        nodes.append(_node(MODEL))
    return dict(config) | {"task": dict(task) | {"reward": nodes}}


def _node(entry: object) -> Node:
    if isinstance(entry, str):
        entry = {"function": entry}
    remedy = "write file.py:function, reward_model, or {function: file.py:function, weight: 1.0, name: NAME}"
    if not isinstance(entry, Mapping) or (unknown := sorted(map(str, entry.keys() - {*ENTRIES, "_target_"}))):
        named = f"{unknown[0]} is not a known key; " if isinstance(entry, Mapping) else "is not a function; "
        raise ConfigError(f"task.reward={shown(entry)}: {named}{remedy}.")
    if "_target_" in entry and entry["_target_"] != REWARD:
        raise ConfigError(f"task.reward={shown(entry)}: is not a node of {REWARD}; {remedy}.")
    function = entry.get("function")
    if not isinstance(function, str | None) or ("function" not in entry):
        raise ConfigError(f"task.reward={shown(entry)}: names no function; {remedy}.")
    function = None if function == MODEL else function
    weight = entry.get("weight", 1.0)
    weight = float(weight) if isinstance(weight, int) and not isinstance(weight, bool) else weight
    name = entry.get("name", MODEL if function is None else function.rpartition(":")[2])
    return {"_target_": REWARD, "function": function, "weight": weight, "name": name}
