"""Reference reproduction of Rejection-Gated Policy Optimization (arXiv 2604.14895).

    run = rgpo.run("algo=ppo", "task=cartpole")      # the arguments of rgpo-run; returns a Run
    run = rgpo.load("results/default/cartpole-...")  # a Run from its folder
    table = rgpo.results("results")                  # all runs as one pandas.DataFrame

Gate, gates and surrogate are the building blocks of an objective. Each name is imported on first use.
"""

from rgpo.version import __version__ as __version__

TYPE_CHECKING = False  # instead of typing's: importing typing would dominate the import time of this module
if TYPE_CHECKING:
    from rgpo import gates
    from rgpo.api import Run, load, results, run
    from rgpo.core.gate import Gate
    from rgpo.core.surrogate import surrogate
    from rgpo.errors import ConfigError, NonFiniteError, OutOfMemory, StorageError

__all__ = ["ConfigError", "Gate", "NonFiniteError", "OutOfMemory", "Run", "StorageError", "gates", "load", "results", "run"]
__all__ += ["surrogate"]

_MODULES = {
    **dict.fromkeys(("Run", "load", "results", "run"), "rgpo.api"),
    **dict.fromkeys(("ConfigError", "NonFiniteError", "OutOfMemory", "StorageError"), "rgpo.errors"),
    "Gate": "rgpo.core.gate",
    "gates": "rgpo.gates",
    "surrogate": "rgpo.core.surrogate",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_MODULES[name])
    globals()[name] = found = module if name == "gates" else getattr(module, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
