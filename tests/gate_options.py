"""Gates with the parameters of conf/gate."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from rgpo.paths import conf_dir

NAMES = sorted(file.stem for file in (conf_dir() / "gate").glob("*.yaml"))


def load_gate(name: str, **changes: Any) -> Any:
    """The gate of conf/gate/<name>.yaml, with other values where given."""
    return instantiate(OmegaConf.load(conf_dir() / "gate" / f"{name}.yaml"), **changes)
