"""The package's version, in a module of its own so that every subpackage can import it, and lookup of installed distributions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

__version__ = "0.2.0"


def distributions_of(module: str) -> Sequence[str]:
    """The installed distributions that provide a module's top-level package, such as ale-py for ale_py.roms."""
    return _distributions().get(module.partition(".")[0], ())


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    """Top-level package -> distributions, cached because listing the files of every distribution takes a second."""
    from importlib import metadata

    return metadata.packages_distributions()
