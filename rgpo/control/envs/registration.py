"""``gymnasium.make`` with a remedy for every id that it cannot make: the module to name, or the package to install."""

from __future__ import annotations

import copy
import difflib
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import gymnasium

from rgpo.control.envs.vector_env import Env
from rgpo.errors import ConfigError, EnvironmentFault, described, first_line, is_own


class Package(NamedTuple):
    """A package that registers environments when its module is imported."""

    module: str
    requirement: str  # of pip


PACKAGES: dict[str, Package] = {  # pattern of its ids
    r"ALE/|\w+(NoFrameskip|Deterministic)-v\d": Package("ale_py", "ale-py"),
    r"(MiniGrid|BabyAI)-": Package("minigrid", "minigrid"),
    r"Fetch|Hand(Manipulate|Reach)|AdroitHand|Ant(Maze|_)|PointMaze|FrankaKitchen": Package(
        "gymnasium_robotics", "gymnasium-robotics"
    ),
    r"dm_control/": Package("shimmy", "shimmy[dm-control]"),
    r"Meta-World/": Package("metaworld", "metaworld"),
    r"(highway|merge|roundabout|parking|intersection|racetrack|u-turn)(-\w+)*-v\d": Package("highway_env", "highway-env"),
    r"mo-": Package("mo_gymnasium", "mo-gymnasium"),
    r"Safety": Package("safety_gymnasium", "safety-gymnasium"),
    r"PyFlyt/": Package("PyFlyt.gym_envs", "PyFlyt"),
    r"panda-gym/|Panda": Package("panda_gym", "panda-gym"),
}

_specs: dict[tuple[str, str], gymnasium.envs.registration.EnvSpec] = {}  # module ("": none) and id -> its registration


def make(env_id: str, kwargs: Mapping[str, object]) -> Env:
    """The environment of an id, or of module:id.

    Raises: ConfigError if gymnasium does not know the id or cannot make it, with the remedy; EnvironmentFault if the module that
    registers it or its constructor raises an error of its own.
    """
    try:
        with undisturbed(), warnings.catch_warnings():
            _import_module(env_id)
            warnings.simplefilter("ignore", DeprecationWarning)  # the v4 environments are used on purpose
            return gymnasium.make(_own_spec(env_id) or env_id, disable_env_checker=True, **kwargs)
    except (ConfigError, EnvironmentFault):
        raise
    except gymnasium.error.UnregisteredEnv as error:
        raise ConfigError(f"task.env_id={env_id}: {_remedy(env_id)}") from error
    except BaseException as error:  # anything from a user's constructor; it must not end a sweep
        if is_own(error):
            raise
        if isinstance(error, gymnasium.error.Error | ImportError) or _is_wrong_call(error):
            given = f" with env_kwargs {dict(kwargs)}" if kwargs else ""
            raise ConfigError(f"task.env_id={env_id}: gymnasium cannot make it{given}; {first_line(error)}.") from error
        raise EnvironmentFault(f"task.env_id={env_id}: cannot be made, its constructor failed ({described(error)}).") from error


@contextmanager
def undisturbed() -> Iterator[None]:
    """Undo an environment's changes to the process: the current directory, and torch's default dtype, device and grad mode."""
    here, torch = _directory(), sys.modules.get("torch")
    before = (torch.get_default_dtype(), torch.is_grad_enabled()) if torch else None
    try:
        yield
    finally:
        if here is not None and _directory() != here:
            os.chdir(here)
        torch = sys.modules.get("torch")
        if torch is not None:
            dtype, gradients = before or (torch.float32, True)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(gradients)
            if torch.get_default_device().type != "cpu":
                torch.set_default_device("cpu")


def _directory() -> Path | None:
    """The current directory; None if it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def _import_module(env_id: str) -> None:
    """Import the module of module:id, as gymnasium would, but keep errors of the module apart from gymnasium's."""
    module, colon, name = env_id.partition(":")
    if not colon:
        return
    if not re.fullmatch(r"\w+(\.\w+)*", module) or module.endswith(".py"):
        if not module:
            raise ConfigError(f"task.env_id={env_id}: names no module before the colon; write module:id, or {name} alone.")
        own = f"{module.removesuffix('.py').rpartition('/')[2]}:{name}"
        raise ConfigError(f"task.env_id={env_id}: {module} is no name of a module; write module:id, as {own}.")
    before = dict(gymnasium.registry)
    try:
        importlib.import_module(module)
        _remember(module, before)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise EnvironmentFault(f"task.env_id={env_id}: {module} imports {error.name}, which is not installed.") from error
        package = next((package for package in PACKAGES.values() if package.module == module), None)
        where = "there is no such module in the current directory, --config-dir or PYTHONPATH, and no such installed package"
        remedy = f"pip install '{package.requirement}'" if package else where
        raise ConfigError(f"task.env_id={env_id}: {module} cannot be imported; {remedy}.") from error
    except BaseException as error:  # the user's own
        if is_own(error):
            raise
        raise EnvironmentFault(f"task.env_id={env_id}: {module} cannot be imported ({described(error)}).") from error


def _remember(module: str, before: Mapping[str, gymnasium.envs.registration.EnvSpec]) -> None:
    """Record what a module registers and what it replaces, since two modules may register the same id."""
    for name, spec in gymnasium.registry.items():
        if spec is not before.get(name):
            _specs[module, name] = spec
            if name in before:
                _specs.setdefault(("", name), before[name])


def _own_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec | None:
    """The registration by the module of module:id, or the first one for a bare id, if another module has replaced it."""
    module, _, name = env_id.rpartition(":")
    spec = _specs.get((module, name))
    return None if spec is gymnasium.registry.get(name) else copy.deepcopy(spec)


def _is_wrong_call(error: BaseException) -> bool:
    """True for a TypeError about the constructor's arguments or return value, but not for one raised inside it."""
    if not isinstance(error, TypeError):
        return False
    trace = error.__cause__.__traceback__ if error.__cause__ else None
    return trace is None or trace.tb_next is None


def _remedy(env_id: str) -> str:
    """The remedy for an unknown id."""
    module, colon, name = env_id.rpartition(":")
    names = {known.lower(): known for known in gymnasium.registry}
    near = [f"{module}{colon}{names[key]}" for key in difflib.get_close_matches(name.lower(), names, n=3)]
    meant = f" Did you mean {', '.join(near)}?" if near else ""
    if colon:
        return f"{module} was imported and registers no {name}; call gymnasium.register in it.{meant}"
    package = next((package for pattern, package in PACKAGES.items() if re.match(pattern, name)), None)
    if package is None:
        own = f"one of your own or of a package is written with the module that registers it, module:{name}"
        return f"is unknown to this gymnasium installation; {own}.{meant or ' gymnasium.pprint_registry() lists all ids.'}"
    missing = importlib.util.find_spec(package.module.partition(".")[0]) is None
    install = f"pip install '{package.requirement}', then " if missing else ""
    return f"is registered by {package.module} and not by gymnasium; {install}write task.env_id={package.module}:{name}."
