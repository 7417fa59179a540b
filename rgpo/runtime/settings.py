"""The configuration keys that the runner itself uses, with their types and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from rgpo.core.ranges import NOT_NEGATIVE, accept, check_fields, count, or_null

MOST_ITERATIONS = 10_000_000  # rows in metrics.parquet, which are joined in memory
NAME = accept(
    lambda name: re.fullmatch(r"[\w-][\w.-]*", name) is not None and len(name.encode()) <= 200,
    "must consist of at most 200 letters, digits, -, _ and dots, and not begin with a dot.",
)
FOLDER = accept(
    lambda name: name != "" and not re.search("[\0\ud800-\udfff]", name),
    "is empty or not a path in UTF-8; give a folder, . for the current one.",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the runner, described in conf/config.yaml; ``choices`` is the option selected from each group, or "none"."""

    name: str = field(metadata=NAME)
    seed: int = field(metadata=count(2**63 - 1, least=0))
    total_env_steps: int | None = field(metadata=or_null(count(10**12)))
    num_iterations: int | None = field(metadata=or_null(count(MOST_ITERATIONS)))
    results_dir: str = field(metadata=FOLDER)
    num_threads: int = field(metadata=count(4096))
    eval_every: int = field(metadata=count(2**63 - 1, least=0))
    gradvar_every: int = field(metadata=count(2**63 - 1, least=0))
    checkpoint_every_s: float = field(metadata=NOT_NEGATIVE)
    exports: list[str]
    save_model: bool
    resume_from: str | None = field(metadata=or_null(FOLDER))
    pause_at: int | None = field(metadata=or_null(count(MOST_ITERATIONS)))
    choices: Mapping[str, str | None]

    def __post_init__(self) -> None:
        check_fields(self, "")

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Self:
        """The settings of a checked configuration.

        Raises: ConfigError if a value is out of range.
        """
        values: dict[str, Any] = {field.name: config[field.name] for field in fields(cls)}
        return cls(**values)

    def choice(self, group: str) -> str:
        """The option selected from a config group, or "none"."""
        return self.choices.get(group) or "none"

    @property
    def task(self) -> str:
        """The task's name, with its scale if it has one."""
        scale = self.choice("scale")
        return self.choice("task") if scale == "none" else f"{self.choice('task')} (scale {scale})"
