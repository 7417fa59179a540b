"""Reopening a run's folder: its configuration, the parts restored from its last checkpoint, and its policy as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rgpo.errors import ConfigError
from rgpo.runtime import checkpoint, manifest, reader
from rgpo.runtime.former import canonical_config
from rgpo.runtime.resources import compute_threads, limited_threads
from rgpo.runtime.settings import Settings

if TYPE_CHECKING:
    from rgpo.control.actor import Actor
    from rgpo.learning.types import Algorithm, Policy, Task

POLICY = "policy"  # written by finished runs of control tasks


class Parts(NamedTuple):
    """Task, policy and algorithm in the state from which a resumed run would continue."""

    task: Task
    policy: Policy
    algorithm: Algorithm
    iteration: int
    env_steps: int


@dataclass(frozen=True)
class StoredRun:
    """A run's folder and its configuration, as stored and with current names."""

    folder: Path
    stored: dict[str, object]
    config: dict[str, object]


def open_run(folder: Path) -> StoredRun:
    """Open the run in a folder.

    Raises: ConfigError if the folder does not contain a run, or if its config.yaml is damaged.
    """
    try:
        stored = reader.read_yaml(folder / "config.yaml")
        damaged = manifest.problems(folder, ("config.yaml",))
    except reader.Unreadable as error:
        raise ConfigError(f"{folder}: {error}; give the folder of a run.") from error
    if damaged:
        raise ConfigError(f"{folder}: {damaged[0]}; repeat the run with force=true.")
    config = canonical_config(stored)
    if not isinstance(config.get("choices"), dict) or type(config.get("seed")) is not int:
        raise ConfigError(f"{folder}: config.yaml has no choices and seed; give the folder of a run.")
    return StoredRun(folder, stored, config)


def restore_parts(run: StoredRun) -> Parts:
    """Restore task, policy and algorithm from the last checkpoint.

    Raises: ConfigError if there is no readable checkpoint, or if a value in the stored configuration was redacted.
    """
    from rgpo.cli.config import build, config_hash
    from rgpo.cli.words import flat
    from rgpo.runtime.provenance import REDACTED
    from rgpo.runtime.session import restore, set_up

    for key, value in flat(run.stored).items():
        if isinstance(value, str) and REDACTED in value:
            raise ConfigError(f"{run.folder}: config.yaml has no value of {key}; repeat the command to use the run.")
    saved = checkpoint.load(run.folder, config_hash(run.stored))
    if saved is None:
        raise ConfigError(
            f"{run.folder}: has no {checkpoint.NAME}, from which the policy is restored; repeat the run with force=true."
        )
    settings = Settings.of(run.config)
    task, algorithm = build(run.config)
    with limited_threads(compute_threads(task, settings.num_threads)):
        policy, _ = set_up(settings, task, algorithm)
        restore(saved, task, policy, algorithm)
    return Parts(task, policy, algorithm, saved["iteration"], saved["env_steps"])


def stored_actor(folder: Path) -> Actor | None:
    """The policy in a finished run's policy/ folder as a function; None if there is no such folder.

    Raises: ConfigError if a file in it is damaged.
    """
    from rgpo.control.actor import DESCRIPTION, Actor

    if not (folder / POLICY / DESCRIPTION).exists() and not manifest.export_damage(folder, POLICY):
        return None
    if damaged := manifest.export_damage(folder, POLICY):
        raise ConfigError(f"{folder}: {'; '.join(damaged.values())}; restore the files, or write them anew with rgpo-export.")
    return Actor.load(folder / POLICY)


def restored_actor(run: StoredRun, parts: Callable[[], Parts]) -> Actor:
    """The policy in the last checkpoint as a function.

    Raises: ConfigError if there is no checkpoint, the policy cannot be exported, or the task is not a control task.
    """
    from rgpo.cli.config import build
    from rgpo.control.task import Control
    from rgpo.learning.export import NoExport
    from rgpo.runtime.export import facts_of

    if not isinstance(build(run.config)[0], Control):
        raise ConfigError(f"{run.folder}: its policy does not act on observations of an environment; see its model/.")
    task, policy, _, iteration, env_steps = parts()
    assert isinstance(task, Control)
    try:
        return task.make_actor(policy, policy.state_dict(), facts_of(run.folder, run.config, iteration, env_steps))
    except NoExport as error:
        raise ConfigError(f"{run.folder}: {error}.") from error
