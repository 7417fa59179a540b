"""Cells composed from kept parts are the cells that hydra composes one by one."""

from collections.abc import Callable
from itertools import product

import pytest
from hydra import compose
from hydra.errors import HydraException
from omegaconf import open_dict

from rgpo.cli.config import Job, compose_jobs, make_job
from rgpo.cli.overrides import Composer, hydra_on
from rgpo.errors import ConfigError

GROUPS = (
    ["algo=ppo"],
    ["algo=rgpo", "gate=erf"],
    ["experiment=first_evidence", "task=hopper", "algo=trpo"],
    ["task=qwen_rlhf", "algo=rgpo"],
)
VALUES = (
    [],
    ["update.lr=1e-4", "seed=2"],
    ["update.adam_eps=${update.lr}", "update.lr=1e-3", "num_iterations=3"],
    ["penalty.coef=${presets.gae.lam}", "gate.sharpness=3"],
    ["checkpoint_every_s=${presets.gae.gamma}"],
    ["+task.env_kwargs.a=1", "~task.env_kwargs.a", "name=other"],
    ["gate.scale=unit", "gate={scale: none}"],
    ["gate={scale: none}", "gate.scale=unit", "task.policy.hidden_sizes=[8]"],
)


def slow(words: list[str]) -> Job:
    """A job whose configuration hydra composes from nothing."""
    composed = compose("config", words, return_hydra_config=True)
    choices = composed.hydra.runtime.choices
    with open_dict(composed):
        del composed["hydra"]
    return make_job(composed, choices, tuple(words))


def outcome(make: Callable[[list[str]], Job], words: list[str]) -> Job | str:
    try:
        return make(words)
    except (ConfigError, HydraException) as error:
        return type(error).__name__


def test_a_mixed_grid_is_what_hydra_composes_cell_by_cell() -> None:
    cells = [[*values[:1], *groups, *values[1:]] for groups, values in product(GROUPS, VALUES)]
    with hydra_on(None) as composer:
        fast = [outcome(lambda words: make_job(*composer(words), tuple(words)), cell) for cell in cells]
        for cell, job in zip(cells, fast, strict=True):
            expected = outcome(slow, cell)
            assert (job == expected) if isinstance(job, Job) else isinstance(expected, str), cell
    jobs = [job for job in fast if isinstance(job, Job)]
    assert len({job.run_dir for job in jobs}) > 15 and len(jobs) < len(cells)


def test_every_cell_is_checked_as_a_single_run_is() -> None:
    with pytest.raises(ConfigError, match="sharpness=-1"):
        compose_jobs(["seed=1,2,3", "gate.sharpness=10,-1"], True, None)
    with pytest.raises(ConfigError, match="Did you mean seed"):
        compose_jobs(["sed=1,2,3"], True, None)
    with pytest.raises(ConfigError, match="algo=ppoo"):
        compose_jobs(["seed=1,2", "algo=ppo,ppoo"], True, None)


def test_what_cells_share_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    whole = Composer.whole
    monkeypatch.setattr(Composer, "whole", lambda self, words: composed.append(words) or whole(self, words))
    jobs = compose_jobs(["algo=ppo,rgpo", "update.lr=1e-3,1e-4", "seed=range(0,10)"], True, None)
    assert len({job.run_dir for job in jobs}) == len(jobs) == 40
    assert sorted(composed[1:]) == [["algo=ppo"], ["algo=rgpo"]]  # the first reads an experiment's grid


def test_words_of_the_launcher_are_no_part_of_a_cell() -> None:
    jobs = compose_jobs(["hydra.verbose=true", "seed=1,2"], True, None)
    assert [job.overrides for job in jobs] == [("seed=1",), ("seed=2",)]
