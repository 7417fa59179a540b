"""The classes that a ``_target_`` may name, judged before anything is imported, and the places where it may occur.

A class is of rgpo, of a folder of the user's on Python's path (the current directory, --config-dir, PYTHONPATH), of ``__main__``
(a notebook or script), or of an installed package that declares an entry point of the group "rgpo". Whatever a module merely
imports, such as ``my_gates.os.system``, is judged by the module that defines it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Protocol, Union, get_args, get_origin, runtime_checkable

from rgpo.cli.hints import MAPPINGS, SCALARS, SEQUENCES, plain_hint
from rgpo.errors import ConfigError, first_line
from rgpo.runtime.former import MOVED_MODULES
from rgpo.runtime.own_code import own_folders
from rgpo.version import distributions_of

OWN = "a module of rgpo, of the current directory or of --config-dir"
ENTRY_POINTS = "rgpo"  # group in which an installed package declares that configurations may name its classes

PLUGINS = {  # node of hydra's that is instantiated -> where its class may be
    "hydra.launcher": ("hydra_plugins.", "hydra._internal.core_plugins.basic_launcher."),
    "hydra.sweeper": ("hydra._internal.core_plugins.basic_sweeper.",),
}


def find_target(key: str, name: object, environments: bool = False) -> Callable[..., object]:
    """The class or function of a dotted name; environments: gymnasium and packages that need it may define it, too.

    Raises: ConfigError if its module is not rgpo's or the user's, cannot be imported or does not define it.
    """
    text = f"{key}._target_={name}"
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{text}: cannot be imported; write the dotted name of a class, such as rgpo.gates.Sigmoid.")
    module = ".".join(parts[:-1])
    try:
        if owner_of(module) is None and not (environments and needs_gymnasium(module)):
            remedy = "write a class of your own around it, in a module there"
            raise ConfigError(f"{text}: {parts[0]} is not {OWN}, and no other code is run; {remedy}.")
        target = getattr(importlib.import_module(module), parts[-1])
        owner = owner_of(str(target.__module__)) if isinstance(target, type | types.FunctionType) else None
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever importing a user's module raises
        former = str(getattr(error, "name", ""))
        remedy = f"; {former} is now {MOVED_MODULES[former]}" if former in MOVED_MODULES else ""
        raise ConfigError(f"{text}: cannot be imported ({first_line(error)}){remedy}.") from error
    if not isinstance(target, type | types.FunctionType):
        raise ConfigError(f"{text}: is no class or function.")
    if owner is None and not (environments and isinstance(target, type) and needs_gymnasium(target.__module__)):
        raise ConfigError(f"{text}: is {target.__module__}.{target.__qualname__}, which is not defined in {OWN}.")
    if owner == "rgpo" and not isinstance(target, type):
        raise ConfigError(f"{text}: is a function of rgpo; name a class.")
    return target


def refuse_foreign_environment(env_id: str) -> None:
    """Refuse an id module:Name-v0, whose module gymnasium imports, unless it is the user's or installed for gymnasium.

    Raises: ConfigError for any other module.
    """
    module, colon, _ = env_id.partition(":")
    top = module.partition(".")[0]
    try:
        if not colon or owner_of(module) is not None:
            return
        known = needs_gymnasium(module)
    except ModuleNotFoundError:  # gymnasium names it
        return
    remedy = "import it in a module of your own, and name that"
    if not known:
        raise ConfigError(f"task.env_id={env_id}: {top} is not {OWN}, nor of a package that needs gymnasium; {remedy}.")


def needs_gymnasium(module: str) -> bool:
    """True for a module of gymnasium or of an installed package that requires it."""
    packages = distributions_of(module)
    needs = [requirement for package in packages for requirement in metadata.requires(package) or ()]
    return any(re.match(r"gymnasium\b", need) for need in (*packages, *needs))


def owner_of(module: str) -> str | None:
    """rgpo, or user for a module whose classes may be named; None for any other. Imports nothing.

    Raises: ModuleNotFoundError if there is no such module.
    """
    top = module.partition(".")[0]
    if top == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        top = "" if spec is None else spec.name.partition(".")[0]  # None: a notebook or a script; otherwise python -m
        return "rgpo" if top == "rgpo" else "user"
    if top == "rgpo":
        return "rgpo"
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made in memory
        return None
    if spec is None:
        raise ModuleNotFoundError(f"No module named {top!r}", name=top)
    places = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
    folders = {Path(place).resolve().parent for place in places}
    if folders and folders <= set(own_folders()):
        return "user"
    declared = {point.module.partition(".")[0] for point in metadata.entry_points(group=ENTRY_POINTS)}
    return "user" if top in declared else None


def make_importable(folder: str | None) -> None:
    """Put a --config-dir last on the import path, so that its modules shadow none."""
    path = None if folder is None else str(Path(folder).resolve())
    if path is not None and path not in sys.path:
        sys.path.append(path)


def refuse_code(node: object, key: str) -> None:
    """Raises: ConfigError if hydra's own node names a class, other than a launcher plugin's, or sets environment variables."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        path = f"{key}.{name}"
        runs = name in ("_target_", "()", "class", "env_set", "callbacks") and value not in ({}, None)
        if runs and not str(value).startswith(PLUGINS.get(key, "\0")):
            raise ConfigError(f"{path}={value}: is refused, because it could run other code; leave it out.")
        refuse_code(value, path)


def takes_object(hint: object) -> bool:
    """True for the hint of a parameter that a node is built for: a class or Protocol, or a callable."""
    return any(kind not in SCALARS and kind not in (*SEQUENCES, *MAPPINGS, object) for kind in map(_kind, _members(hint)))


def entry_hint(hint: object, mapping: bool) -> object:
    """The hint of the entries of a mapping or list; object if there is none."""
    for member in _members(hint):
        arguments = get_args(member)
        if arguments and _kind(member) in (MAPPINGS if mapping else SEQUENCES):
            return arguments[-1] if mapping else arguments[0]
    return object


@runtime_checkable
class LateKind(Protocol):
    """A class of ``rgpo.control.late``, which keeps a target for a later call."""

    base: tuple[str, str]  # module and name of the class that a target must be a subclass of
    provided: frozenset[str]  # parameters that are given by then

    def defers(self, target: object) -> bool:
        """True for a target that is called later."""
        ...

    def __call__(self, target: Callable[..., object], keywords: Mapping[str, object]) -> object:
        """The object that keeps it."""
        ...


def late_kind(hint: object, target: object) -> LateKind | None:
    """The class of the hint that keeps a target for a later call (rgpo.control.late); None if the target is called now."""
    kinds = map(_kind, _members(hint))
    return next((kind for kind in kinds if isinstance(kind, LateKind) and kind.defers(target)), None)


def bases_of(hint: object, target: object) -> str:
    """The base classes that a target lacks, where the hint keeps its classes for a later call; "" if it lacks none."""
    kinds = [_kind(member) for member in _members(hint)]
    bases = [".".join(kind.base) for kind in kinds if isinstance(kind, LateKind)]
    if not bases:
        return ""
    plain = tuple(kind for kind in kinds if isinstance(kind, type) and not isinstance(kind, LateKind))
    fits = isinstance(target, type) and bool(plain) and issubclass(target, plain)
    return "" if fits else " or ".join(bases)


def of_packages(hint: object) -> bool:
    """True for a hint whose classes may be those of packages of environments."""
    return any(getattr(_kind(member), "from_packages", False) for member in _members(hint))


def lacking_methods(hint: object, target: Callable[..., object]) -> list[str]:
    """The methods of a Protocol that a class lacks; of any other class the class itself, if it is no subclass.

    Nothing is known before the call about a function without a return annotation, and about attributes that __init__ sets.
    """
    kinds = [_kind(member) for member in _members(hint)]
    if not isinstance(target, type) or not all(isinstance(kind, type) for kind in kinds) or object in kinds:
        return []
    lacking = [_lacking(kind, target) for kind in kinds if isinstance(kind, type) and kind is not type(None)]
    return [] if not lacking or [] in lacking else lacking[0]


def _lacking(kind: type, target: type) -> list[str]:
    if not getattr(kind, "_is_protocol", False):
        return [] if kind in SCALARS or issubclass(target, kind) else [kind.__name__]
    bases = [base for base in kind.__mro__ if getattr(base, "_is_protocol", False)]
    methods = {name for base in bases for name, member in vars(base).items() if inspect.isfunction(member)}
    return sorted(name for name in methods - set(dir(target)) if name == "__call__" or not name.startswith("_"))


def _members(hint: object) -> list[object]:
    plain = plain_hint(hint)
    return [plain_hint(part) for part in get_args(plain)] if get_origin(plain) in (Union, types.UnionType) else [plain]


def _kind(hint: object) -> object:
    return get_origin(hint) or hint
