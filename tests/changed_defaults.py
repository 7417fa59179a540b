"""Defaults that were changed on purpose since results were stored; experiments/LOG.md has the reasons, by date."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_present_defaults(config: Mapping[str, Any], algo: str) -> dict[str, Any]:
    """A canonical configuration of an older run with the present defaults (2026-11-26: language tasks)."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    if "center_scores" in found["task"]:
        found["task"]["center_scores"] = True
        if "clip_jointly" in found["update"]:
            found["update"]["clip_jointly"] = False
        if "estimator" in found["penalty"]:
            found["penalty"]["estimator"] = "unbiased"
    if algo == "grpo":  # as published, wherever it composes
        found["penalty"]["estimator"] = "k3"
    return found
