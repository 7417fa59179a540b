"""Security checks for ``_target_``: which classes it may name, decided before anything is imported, and where it may occur.

A class must be defined in rgpo, in one of the user's folders on Python's path (the current directory, --config-dir, PYTHONPATH),
in ``__main__`` (a notebook or script), or in an installed package that declares an entry point in the group "rgpo". A name that
a module merely imports, such as ``my_gates.os.system``, is judged by the module that defines it.
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
ENTRY_POINTS = "rgpo"  # an installed package with an entry point in this group allows configurations to name its classes

PLUGINS = {  # hydra node that hydra instantiates -> allowed prefixes of its class
    "hydra.launcher": ("hydra_plugins.", "hydra._internal.core_plugins.basic_launcher."),
    "hydra.sweeper": ("hydra._internal.core_plugins.basic_sweeper.",),
}


def find_target(key: str, name: object, environments: bool = False) -> Callable[..., object]:
    """Import a class or function by its dotted name; environments: also allow gymnasium and packages that require it.

    Raises: ConfigError if its module is neither rgpo's nor the user's, cannot be imported, or does not define it.
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
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
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
    """Check an id of the form module:Name-v0, whose module gymnasium would import.

    Raises: ConfigError if the module is neither the user's nor from a package that requires gymnasium.
    """
    module, colon, _ = env_id.partition(":")
    top = module.partition(".")[0]
    try:
        if not colon or owner_of(module) is not None:
            return
        known = needs_gymnasium(module)
    except ModuleNotFoundError:  # gymnasium's own error will name it
        return
    remedy = "import it in a module of your own, and name that"
    if not known:
        raise ConfigError(f"task.env_id={env_id}: {top} is not {OWN}, nor of a package that needs gymnasium; {remedy}.")


def needs_gymnasium(module: str) -> bool:
    """True if the module is from gymnasium or from an installed package that requires it."""
    packages = distributions_of(module)
    needs = [requirement for package in packages for requirement in metadata.requires(package) or ()]
    return any(re.match(r"gymnasium\b", need) for need in (*packages, *needs))


def owner_of(module: str) -> str | None:
    """Return "rgpo" or "user" if configurations may name a module's classes, else None; imports nothing.

    Raises: ModuleNotFoundError if there is no such module.
    """
    top = module.partition(".")[0]
    if top == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        top = "" if spec is None else spec.name.partition(".")[0]  # None for a notebook or script, not for python -m
        return "rgpo" if top == "rgpo" else "user"
    if top == "rgpo":
        return "rgpo"
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module created in memory
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
    """Append a --config-dir to the import path, so that its modules cannot shadow others."""
    path = None if folder is None else str(Path(folder).resolve())
    if path is not None and path not in sys.path:
        sys.path.append(path)


def refuse_code(node: object, key: str) -> None:
    """Raises: ConfigError if hydra's node names a class other than a launcher's or sweeper's, or sets environment variables."""
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
    """True if a parameter with this hint accepts an object built from a node: a class, a Protocol or a callable."""
    return any(kind not in SCALARS and kind not in (*SEQUENCES, *MAPPINGS, object) for kind in map(_kind, _members(hint)))


def entry_hint(hint: object, mapping: bool) -> object:
    """The type hint for the entries of a mapping or list; ``object`` if there is none."""
    for member in _members(hint):
        arguments = get_args(member)
        if arguments and _kind(member) in (MAPPINGS if mapping else SEQUENCES):
            return arguments[-1] if mapping else arguments[0]
    return object


@runtime_checkable
class LateKind(Protocol):
    """A class of ``rgpo.control.late``, which stores a target to be called later."""

    base: tuple[str, str]  # module and name of the required base class of a target
    provided: frozenset[str]  # parameters that the later call supplies

    def defers(self, target: object) -> bool:
        """True if the target is to be called later."""
        ...

    def __call__(self, target: Callable[..., object], keywords: Mapping[str, object]) -> object:
        """The object that stores the target and its keywords."""
        ...


def late_kind(hint: object, target: object) -> LateKind | None:
    """The LateKind in the hint that stores this target for a later call; None if the target is to be called now."""
    kinds = map(_kind, _members(hint))
    return next((kind for kind in kinds if isinstance(kind, LateKind) and kind.defers(target)), None)


def bases_of(hint: object, target: object) -> str:
    """The required base classes, if the hint has a LateKind and the target fits none of its classes; else ""."""
    kinds = [_kind(member) for member in _members(hint)]
    bases = [".".join(kind.base) for kind in kinds if isinstance(kind, LateKind)]
    if not bases:
        return ""
    plain = tuple(kind for kind in kinds if isinstance(kind, type) and not isinstance(kind, LateKind))
    fits = isinstance(target, type) and bool(plain) and issubclass(target, plain)
    return "" if fits else " or ".join(bases)


def of_packages(hint: object) -> bool:
    """True if the hint allows classes from environment packages."""
    return any(getattr(_kind(member), "from_packages", False) for member in _members(hint))


def lacking_methods(hint: object, target: Callable[..., object]) -> list[str]:
    """The methods of a Protocol that a class lacks; for any other hint, the class's name if the target is not a subclass.

    Functions, and attributes that __init__ sets, can only be checked after the call.
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
