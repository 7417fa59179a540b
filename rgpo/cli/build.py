"""Build objects from configuration nodes: check keys and types, then call the node's _target_ with its other entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from rgpo.cli.functions import find_function
from rgpo.cli.hints import Node, Parameters, accepts, describe, is_node, missing_members, parameters_of, shown, takes_function
from rgpo.cli.targets import (
    bases_of,
    entry_hint,
    find_target,
    lacking_methods,
    late_kind,
    of_packages,
    refuse_foreign_environment,
    takes_object,
)
from rgpo.cli.words import CHOOSE_WITH
from rgpo.core.ranges import Range, declared_range
from rgpo.errors import ConfigError, close_matches, described
from rgpo.learning.types import Algorithm, Task
from rgpo.runtime.former import canonical_target
from rgpo.runtime.schema import AXES

GROUPS = {"ref_gate": "gate@ref_gate"} | {key: key for key in ("task", "algo", *AXES) if key != "ref_gate"}  # key -> group


def build(config: Node) -> tuple[Task, Algorithm]:
    """The task and the algorithm that a resolved configuration describes.

    Raises: ConfigError if a node cannot be built, the algorithm does not use one of the axes, or task and algorithm are
    incompatible.
    """
    node = config.get("task")
    if is_node(node) and isinstance(env_id := node.get("env_id"), str):
        refuse_foreign_environment(env_id)
    task: Task = make("task", node, Task)
    algorithm = _make_algorithm(config)
    task.validate(algorithm.requirements)
    algorithm.validate(task.batch_size)
    return task, algorithm


def make(key: str, node: object, hint: object = object) -> Any:
    """Build the object that a node describes; hint is the type it must have.

    Raises: ConfigError for an unknown or missing key, a value of the wrong type, or any exception from the constructor.
    """
    if not is_node(node):
        group = GROUPS.get(key) or CHOOSE_WITH.get(key, key)
        given = f"~{key}: leaves out what every run needs" if node is None else f"{key}={shown(node)}: needs a _target_"
        raise ConfigError(f"{given}; choose an option of the group {group}.")
    return _construct(key, node, {}, hint)


def _make_algorithm(config: Node) -> Algorithm:
    node = config.get("algorithm")
    if not is_node(node):
        raise ConfigError(f"algorithm={shown(node)}: needs a _target_, for example rgpo.learning.algorithm.GateAlgorithm.")
    _, parameters = _target("algorithm", node)
    algo = cast(Node, config.get("choices") or {}).get("algo")
    name = f"algo={algo}" if algo else f"algorithm._target_={node['_target_']}"
    axes: dict[str, object] = {}
    for axis in AXES:
        group, part = GROUPS[axis], config.get(axis)
        if part is None and axis in parameters.required:
            raise ConfigError(f"{group}=null: {name} needs one; choose an option of the group {group.partition('@')[0]}.")
        if part is not None and axis not in parameters.hints:
            remedy = f"leave it out (in the defaults of the algorithm's yaml: override /{group}: null)"
            raise ConfigError(f"{group}={_chosen(config, axis)}: {name} does not read it; {remedy}.")
        if axis in node:
            raise ConfigError(f"algorithm.{axis}={shown(node[axis])}: is an axis; choose it with {group}=.")
        if part is not None:
            axes[axis] = make(axis, part, parameters.hints[axis])
    return cast(Algorithm, _construct("algorithm", node, axes, Algorithm))


def _chosen(config: Node, axis: str) -> object:
    """The option selected for an axis, or its class if the axis is not from an option."""
    part = config[axis]
    choice = cast(Node, config.get("choices") or {}).get(axis)
    return choice or (str(part["_target_"]) if is_node(part) else shown(part))


def _construct(key: str, node: Node, given: Mapping[str, object], hint: object) -> object:
    """Build a node's object; given: additional arguments that have already been built."""
    target, parameters = _target(key, node, of_packages(hint))
    late = late_kind(hint, target)
    if late is not None:  # called later: the task supplies the rest, and the class checks its arguments
        given, parameters = dict.fromkeys(late.provided), parameters._replace(hints=dict.fromkeys(parameters.hints, object))
    elif base := bases_of(hint, target):
        raise ConfigError(f"{key}._target_={node['_target_']}: is no {base}; give the name of a class that is.")
    entries = {str(name): value for name, value in node.items() if name != "_target_"}
    if not parameters.open:
        refuse_unknown(f"{key}.", entries, set(parameters.hints) - set(given))
    for name in parameters.required:
        if name not in entries and name not in given:
            raise ConfigError(f"{key}.{name}: is missing; {node['_target_']} needs it.")
    ranges = declared_ranges(target)
    for name, value in entries.items():
        check_type(f"{key}.{name}", value, parameters.hints.get(name, object), ranges.get(name))
    _refuse_other_kind(key, node, hint, [] if late else lacking_methods(hint, target))
    parts = {name: _built(f"{key}.{name}", value, parameters.hints.get(name, object)) for name, value in entries.items()}
    if late is not None:
        return late(target, parts)
    try:
        made = target(**parts, **given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        raise ConfigError(f"{key}: cannot be made from {shown(node)} ({described(error)}).") from error
    _refuse_other_kind(key, node, hint, missing_members(hint, made))
    return made


def _refuse_other_kind(key: str, node: Node, hint: object, lacking: list[str]) -> None:
    if lacking:
        raise ConfigError(f"{key}._target_={node['_target_']}: is not {describe(hint)}: it lacks {', '.join(lacking)}.")


def _built(key: str, value: object, hint: object) -> object:
    """A value in which every node is replaced by its object; nodes are allowed only where the hint names a class."""
    if is_node(value):
        if not takes_object(hint):
            remedy = "remove it, or annotate the parameter with the class that it takes"
            raise ConfigError(f"{key}._target_={value['_target_']}: is not read here, where plain values belong; {remedy}.")
        return _construct(key, value, {}, hint)
    if isinstance(value, str) and takes_function(hint):
        return find_function(key, value)
    if isinstance(value, Mapping):
        return {name: _built(f"{key}.{name}", entry, entry_hint(hint, mapping=True)) for name, entry in value.items()}
    if isinstance(value, list):
        return [_built(f"{key}[{i}]", entry, entry_hint(hint, mapping=False)) for i, entry in enumerate(value)]
    return value


def _target(key: str, node: Node, environments: bool = False) -> tuple[Callable[..., object], Parameters]:
    """The class or function that a node names, by its current or an old name, and its parameters."""
    name = node["_target_"]
    target = find_target(key, present_name(name) if isinstance(name, str) else name, environments)
    return target, parameters_of(target)


def present_name(target: str) -> str:
    """A class's current dotted name, given its current or an old one."""
    return canonical_target(target) if "." in target else target


def declared_ranges(target: object) -> dict[str, Range | None]:
    """The ranges declared by a dataclass's fields; {} for any other target."""
    return {entry.name: declared_range(entry) for entry in fields(target)} if is_dataclass(target) else {}


def check_type(key: str, value: object, hint: object, declared: Range | None = None) -> None:
    """Raises: ConfigError if a value does not match its type hint."""
    if not accepts(hint, value):
        chosen = f"; choose one with {CHOOSE_WITH[key]}={value if isinstance(value, str) else ''}" if key in CHOOSE_WITH else ""
        if isinstance(value, float) and value.is_integer() and accepts(hint, int(value)):
            fits = abs(value) < 2**53 and (declared is None or declared.contains(int(value)))
            chosen = f"; write {int(value)}" if fits else ""
        raise ConfigError(f"{key}={shown(value)}: must be {describe(hint)}{chosen}.")


def refuse_unknown(prefix: str, entries: Mapping[str, object], known: Iterable[str]) -> None:
    """Raises: ConfigError if an entry has an unknown key."""
    names = set(known)
    for key in entries:
        if key not in names:
            listing = f" The keys are {', '.join(sorted(names))}." if names else " There are none."
            near = close_matches(key, names) or listing
            raise ConfigError(f"{prefix}{key}={shown(entries[key])}: is not a known key and would be ignored.{near}")
