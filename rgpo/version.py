"""The version of the package, apart from its public names so that every room can read it, and the distributions of others."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

__version__ = "0.2.0"


def distributions_of(module: str) -> Sequence[str]:
    """The installed distributions that provide a module's top package, such as ale-py for ale_py.roms."""
    return _distributions().get(module.partition(".")[0], ())


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    """All of them, read once: the files of every distribution are listed, which takes a second."""
    from importlib import metadata

    return metadata.packages_distributions()
