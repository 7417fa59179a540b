"""Folders of configuration files and caches."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from rgpo.errors import ConfigError


def conf_dir() -> Path:
    """The conf/ folder: inside the package if installed from a wheel, next to it in a checkout."""
    return _beside_package("conf")


def claims_dir() -> Path:
    """The claims/ folder, found in the same way."""
    return _beside_package("claims")


def _beside_package(name: str) -> Path:
    packaged = Path(__file__).parent / name
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / name


def compiler_cache_dir() -> Path:
    """TORCHINDUCTOR_CACHE_DIR, or else inductor/ in ``cache_dir()``; created if necessary, accessible to this user only.

    Raises: ConfigError if it cannot be created or is not writable.
    """
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_dir() / "inductor").absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        ours = folder.parent == cache_dir().absolute()
        key, value = ("RGPO_CACHE", folder.parent) if ours else ("TORCHINDUCTOR_CACHE_DIR", folder)
        remedy = f"cannot write there ({error.strerror}); set {key} to a folder that can be written."
        raise ConfigError(f"{key}={value}: {remedy}") from error
    return folder


def cache_dir() -> Path:
    """RGPO_CACHE, or else ~/.cache/rgpo."""
    return Path(os.environ.get("RGPO_CACHE") or Path.home() / ".cache" / "rgpo")
