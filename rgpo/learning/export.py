"""Export of trained policies for use outside rgpo: the interfaces of tasks and policies that can be saved to a folder."""

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
    """Origin of a policy, without timestamps and attempts, so that repeated exports are identical."""

    run_id: str
    task: str
    algo: str
    seed: int
    iteration: int
    env_steps: int
    command: str
    commit: str | None  # of rgpo's checkout
    versions: Mapping[str, str]
    metrics: Mapping[str, float]  # the latest values up to the iteration


@runtime_checkable
class ExportingPolicy(Protocol):
    """A user's policy that can save itself; its files are in policy/."""

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
        """Write the files into an empty folder; state: the policy's complete state.

        Raises: NoExport if this policy cannot be saved.
        """
        ...
