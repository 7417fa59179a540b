"""Where the configuration and the caches are."""

from __future__ import annotations

import os
from pathlib import Path


def conf_dir() -> Path:
    """The packaged conf/ of a wheel, else the checkout's beside the package."""
    packaged = Path(__file__).parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "conf"


def cache_dir() -> Path:
    """RGPO_CACHE, else ~/.cache/rgpo."""
    return Path(os.environ.get("RGPO_CACHE") or Path.home() / ".cache" / "rgpo")
