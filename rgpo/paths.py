"""The folders of the configuration and of the cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from rgpo.errors import ConfigError


def conf_dir() -> Path:
    """The conf/ folder: inside the package when installed from a wheel, beside it in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf"


def made_cache_dir() -> Path:
    """``cache_dir()``, created if necessary.

    Raises: ConfigError if it cannot be created or written.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        remedy = f"cannot write there ({error.strerror}); set RGPO_CACHE to a folder that can be written."
        raise ConfigError(f"RGPO_CACHE={folder}: {remedy}") from error
    return folder


def cache_dir() -> Path:
    """RGPO_CACHE, else ~/.cache/rgpo."""
    return Path(os.environ.get("RGPO_CACHE") or Path.home() / ".cache" / "rgpo")
