"""The keys of a run's configuration that the runner itself reads, with their types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Each key as described in conf/config.yaml; ``choices`` are the options selected of each group, "none" included."""

    name: str
    seed: int
    total_env_steps: int | None
    num_iterations: int | None
    results_dir: str
    num_threads: int
    eval_every: int
    gradvar_every: int
    checkpoint_every_s: float
    exports: list[str]
    choices: Mapping[str, str | None]

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Settings:
        """The settings of a checked configuration."""
        values: dict[str, Any] = {field.name: config[field.name] for field in fields(cls)}
        return cls(**values)

    def choice(self, group: str) -> str:
        """The option selected of a group; "none" where there is none."""
        return self.choices.get(group) or "none"

    @property
    def task(self) -> str:
        """The task's name, with its scale where tasks have several."""
        scale = self.choice("scale")
        return self.choice("task") if scale == "none" else f"{self.choice('task')} (scale {scale})"
