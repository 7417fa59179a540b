"""Classes that are named in a configuration and called by a task later, when it knows their remaining arguments."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rgpo.errors import ConfigError, blamed, described

if TYPE_CHECKING:
    from rgpo.control.envs.vector_env import Env


@dataclass(frozen=True)
class Late:
    """A class with the keyword arguments from its node."""

    target: Callable[..., Any]
    keywords: Mapping[str, object]

    base: ClassVar[tuple[str, str]]  # module and name of the class that the target must be a subclass of
    provided: ClassVar[frozenset[str]]  # parameters supplied by the task
    from_packages: ClassVar[bool] = False  # whether gymnasium and packages that need it may define the target

    def __post_init__(self) -> None:
        """Raises: ConfigError for a class that the task cannot use."""

    @classmethod
    def defers(cls, target: object) -> bool:
        """True for a subclass of the base, whose module is imported along with any subclass."""
        module, name = cls.base
        base = getattr(sys.modules.get(module), name, None)
        return base is not None and isinstance(target, type) and issubclass(target, base)

    def __repr__(self) -> str:
        """Name(key=value), as the banner shows it."""
        keywords = ", ".join(f"{key}={value}" for key, value in self.keywords.items())
        return f"{getattr(self.target, '__qualname__', self.target)}({keywords})"


class Wrapper(Late):
    """A gymnasium.Wrapper from gymnasium.wrappers, a package of environments or the user's own code."""

    base = ("gymnasium", "Wrapper")
    provided = frozenset({"env"})
    from_packages = True

    def __post_init__(self) -> None:
        """Raises: ConfigError for gymnasium's normalizers, whose running moments checkpoints lack and evaluations would reset."""
        name = getattr(self.target, "__qualname__", "")
        ours = {"NormalizeObservation": "task.normalize_observation", "NormalizeReward": "task.normalize_reward"}.get(name)
        if ours is not None and str(getattr(self.target, "__module__", "")).startswith("gymnasium.wrappers"):
            why = "has running moments of its own, which checkpoints lack and every evaluation would begin anew"
            raise ConfigError(f"task.wrappers: {self!r} {why}; leave it out and use {ours}=true.")

    def __call__(self, env: Env) -> Env:
        """The wrapped environment.

        Raises: ConfigError if the wrapper refuses the environment or its keywords.
        """
        parameters = inspect.signature(self.target).parameters
        tuples = {key for key, p in parameters.items() if "tuple[" in str(p.annotation)}
        keywords = {key: tuple(x) if key in tuples and isinstance(x, list) else x for key, x in self.keywords.items()}
        with blamed(lambda error: ConfigError(f"task.wrappers: {self!r} cannot wrap {env} ({described(error)}).")):
            made = self.target(env, **keywords)
        if not isinstance(made, sys.modules["gymnasium"].Env):
            raise ConfigError(f"task.wrappers: {self!r} returned {type(made).__name__}, which is no environment; return one.")
        return made
