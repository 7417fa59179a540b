"""Every option of every group composes, instantiates and keeps to its dataclass."""

import dataclasses
import importlib

import pytest
from omegaconf import OmegaConf

from rgpo.cli.config import build, compose_jobs
from rgpo.cli.overrides import group_options
from rgpo.core.gates import Budget, Open
from rgpo.errors import ConfigError
from rgpo.paths import conf_dir

GROUPS = ("algo", "gate", "advantage", "penalty", "dual")
LANGUAGE_ALGOS = ("dapo", "grpo", "gspo", "rloo")
BAD_ALONE = {("gate", "open"), ("advantage", "group_relative"), ("advantage", "leave_one_out")}  # not for control
BAD_ALONE |= {("algo", name) for name in LANGUAGE_ALGOS}


@pytest.mark.parametrize("group,option", [(g, o) for g in GROUPS for o in group_options(g) if (g, o) not in BAD_ALONE])
def test_option_builds(group: str, option: str) -> None:
    task, algorithm = build(compose_jobs([f"{group}={option}"], False, None)[0].config)
    assert task.full_id == "CartPole-v1" and algorithm.gate is not None


@pytest.mark.parametrize("algo", group_options("algo"))
def test_every_algorithm_builds_on_language_and_only_rgpo_has_two_gates(algo: str) -> None:
    config = compose_jobs([f"algo={algo}", "task=qwen_rlhf"], False, None)[0].config
    task, algorithm = build(config)
    assert config["choices"]["scale"] == "embedded" and task.batch_size == 32
    assert isinstance(algorithm.ref_gate, Budget if algo == "rgpo" else Open)
    assert (algorithm.penalty.coef > 0) + (algorithm.penalty.reward_kl_coef > 0) == (algo not in ("dapo", "gspo"))


@pytest.mark.parametrize("algo", LANGUAGE_ALGOS)
def test_language_algorithms_are_refused_on_control(algo: str) -> None:
    with pytest.raises(ConfigError):
        compose_jobs([f"algo={algo}", "task=cartpole"], False, None)


@pytest.mark.parametrize("task", [name for name in group_options("task") if name != "gym"])
def test_task_builds(task: str) -> None:
    job = compose_jobs([f"task={task}"], False, None)[0]
    assert job.run_dir.name.startswith(f"{task}-rgpo-s1-")


@pytest.mark.parametrize("version", ["v4", "v5"])
@pytest.mark.parametrize("task", ["halfcheetah", "hopper", "walker2d", "ant"])
def test_both_mujoco_versions(task: str, version: str) -> None:
    built, _ = build(compose_jobs([f"task={task}", f"task.version={version}"], False, None)[0].config)
    assert built.full_id.endswith(version)


@pytest.mark.parametrize("file", sorted(conf_dir().glob("*/*.yaml")), ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_knob_of_a_dataclass_stands_in_its_yaml(file) -> None:
    node = OmegaConf.load(file)
    if "_target_" not in node:
        return
    module, _, name = node._target_.rpartition(".")
    target = getattr(importlib.import_module(module), name)
    fields = {f.name for f in dataclasses.fields(target) if f.init}
    assert {key for key in node if key != "_target_"} == fields


def test_published_defaults_of_ppo() -> None:
    config = compose_jobs(["task=hopper", "algo=ppo"], False, None)[0].config
    update = config["update"]
    assert (update["lr"], update["num_epochs"], update["num_minibatches"], update["adam_eps"]) == (3e-4, 10, 32, 1e-5)
    assert (update["vf_coef"], update["ent_coef"], update["max_grad_norm"], update["value_clip"]) == (0.5, 0.0, 0.5, 0.2)
    assert (config["advantage"]["gamma"], config["advantage"]["lam"]) == (0.99, 0.95)
    assert (config["task"]["num_steps"], config["task"]["num_envs"], config["task"]["version"]) == (2048, 1, "v4")
