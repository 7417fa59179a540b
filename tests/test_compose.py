"""Cells composed from kept parts are the cells that hydra composes one by one."""

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path

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


def test_one_composer_may_be_used_inside_another() -> None:
    with hydra_on(None) as outer:
        with hydra_on(None) as inner:
            assert inner(["algo=ppo"])[1]["algo"] == "ppo"
        assert outer(["algo=trpo", "seed=3"])[0].seed == 3


@pytest.mark.parametrize("values", ["range(0,1000000000000)", "range(0,1,1e-9)", ",".join(map(str, range(400)))])
def test_a_sweep_of_too_many_jobs_is_refused_at_once(values: str) -> None:
    with pytest.raises(ConfigError, match="over 100,000 jobs") as caught:
        compose_jobs([f"seed={values}", f"update.lr={values}"], True, None)
    assert "seed=" in str(caught.value)


GATE = "_target_: rgpo.gates.Log\nscale: none\n"
GLOBAL = "# @package _global_\n"
ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{n}: &{n} [{','.join([f'*{m}'] * 10)}]\n" for m, n in pairwise("abcdefghi"))
FILES = {  # a user's gate/x.yaml or experiment/x.yaml -> what the sentence holds
    "gate": {
        "not yaml": (f"{GATE}  x: 1\n", "gate/x.yaml cannot be read (not valid YAML, line 3)"),
        "two documents": (f"{GATE}---\n{GATE}", "not valid YAML"),
        "code": ("_target_: !!python/object/apply:os.getcwd []\n", "gate/x.yaml cannot be read"),
        "aliases": (ALIASES, "too many entries or levels"),
        "deep": ("x: " + "[" * 2000 + "]" * 2000, "too many entries or levels"),
        "encoding": (GATE.encode("utf-16"), "not UTF-8"),
        "bytes": (GATE.replace("none", "!!binary aGVsbG8="), "gate/x.yaml cannot be read"),
        "a list": ("[1, 2]\n", "gate=[1,2]: needs a _target_"),
        "itself": ("defaults: [x]\n", "gate=x"),
        "no list of defaults": ("defaults: 3\n", "gate=x"),
        "a cycle": (f"{GATE}a: ${{.b}}\nb: ${{.a}}\n", "Recursive interpolation"),
        "hydra": ("# @package hydra.launcher\n" + GATE, "gate=x"),
    },
    "experiment": {
        "callbacks": (f"{GLOBAL}hydra: {{callbacks: {{x: {{_target_: os.getcwd}}}}}}\n", "hydra.callbacks"),
        "launcher": (f"{GLOBAL}hydra: {{launcher: {{_target_: os.getcwd}}}}\n", "hydra.launcher._target_=os.getcwd"),
        "environment": (f"{GLOBAL}hydra: {{job: {{env_set: {{PYTHONPATH: x}}}}}}\n", "hydra.job.env_set"),
        "logging": (f"{GLOBAL}hydra: {{job_logging: {{handlers: {{x: {{(): os.getcwd}}}}}}}}\n", "hydra.job_logging"),
        "no mapping": (f"{GLOBAL}hydra: 3\n", "experiment=x"),
    },
}


@pytest.mark.parametrize(("group", "case"), [(group, case) for group in FILES for case in FILES[group]])
def test_an_odd_file_of_the_users_is_one_sentence(group: str, case: str, tmp_path: Path) -> None:
    text, expected = FILES[group][case]
    (tmp_path / group).mkdir()
    (tmp_path / group / "x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for multirun in (False, True):
        with pytest.raises(ConfigError) as caught:
            compose_jobs([f"{group}=x"], multirun, str(tmp_path))
        assert expected in str(caught.value) and str(caught.value).endswith(".")


def test_an_option_may_set_nothing(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "nothing.yaml").write_text(f"{GLOBAL}# as it is\n")
    assert compose_jobs(["experiment=nothing"], False, str(tmp_path))


MISLEADING = {
    ("task=gym", "task.env_kwargs.kind=plain"): r"task\.env_kwargs\.kind=plain: is a new entry of task\.env_kwargs; "
    r"write \+task\.env_kwargs\.kind=plain\.",
    ("task=gym", "task.env_kwargs={kind: plain}"): r"task\.env_kwargs={kind: plain}: .* write \+task\.env_kwargs={kind: plain}\.",
    ("~task",): r"^~task: leaves out what every run needs; choose an option of the group task\.",
    ("metrics={a: 1}",): r"metrics={a: 1}: is a new entry of metrics; write \+metrics={a: 1}\.",
    ("task=gym", "task.env_kwarg=1"): r"task\.env_kwarg=1: is not a known key\. Did you mean task\.env_kwargs",
    ("num_iterations=1e20",): r"whole number or null\.",
    ("num_iterations=1e8",): r"whole number or null\.",
    ("num_iterations=-0.0",): r"whole number or null\.",
    ("memory_gb=1e30",): r"whole number\.",
    ("task.num_steps=1e3",): r"write 1000\.",
    ("gate=/algo/ppo",): r"gate=/algo/ppo: must be the name of an option, without folders; .*\.",
    ("experiment=../algo/ppo",): r"experiment=\.\./algo/ppo: must be the name of an option, without folders; .*\.",
}


@pytest.mark.parametrize("words", MISLEADING, ids=" ".join)
def test_a_refusal_shows_what_was_typed_and_a_remedy_that_works(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=MISLEADING[words] + "$" if words[-1] != "task.env_kwarg=1" else MISLEADING[words]):
        compose_jobs([*words], False, None)
