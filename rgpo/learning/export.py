"""Trained policies for use outside rgpo: what a task or a policy has if it can be saved in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rgpo.learning.types import Policy, State


class NoExport(Exception):
    """A policy that cannot be used outside rgpo; the text is a clause with the reason."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Origin of a policy, without clocks and attempts, so that a repeated export is equal to the first."""

    run_id: str
    task: str
    algo: str
    seed: int
    iteration: int
    env_steps: int
    command: str
    commit: str | None  # of rgpo's checkout
    versions: Mapping[str, str]
    metrics: Mapping[str, float]  # the last ones up to the iteration


@runtime_checkable
class ExportingPolicy(Protocol):
    """A policy of the user's own that can be saved; its files are in policy/."""

    def export(self, folder: Path, facts: Facts) -> None:
        """Write the files into an empty folder."""
        ...


@runtime_checkable
class ExportingTask(Protocol):
    """A task that saves its policies, because it knows their inputs and outputs."""

    @property
    def export_name(self) -> str:
        """The folder in the run: policy or model."""
        ...

    def export(self, policy: Policy, state: State, folder: Path, facts: Facts) -> None:
        """Write the files into an empty folder; state: the policy's, whole, from any process.

        Raises: NoExport if this policy cannot be saved.
        """
        ...
